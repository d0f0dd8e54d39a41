"""Writes what `ppl-vi report` reads beside the records, and the page itself where `--html` asks for it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ppl_vi.runtime.outputs import write_output_text

if TYPE_CHECKING:
    from ppl_vi.comparison.comparison import Comparison

PAGE = "report.html"


def has_curves(arguments: argparse.Namespace) -> bool:
    """Whether curves are needed: for figures, or for the page."""
    return not arguments.no_plots or arguments.html


def write_report(comparison: Comparison, arguments: argparse.Namespace) -> None:
    """Writes the records, verdicts and curves of a comparison in one file, and the page if it is asked for."""
    if not has_curves(arguments):
        return
    from ppl_vi.report import page_data

    held = page_data.data_of(comparison)
    write_output_text(arguments.out / page_data.FILE, page_data.to_text(held))
    write_page(held["records"], arguments, held)


def write_page(
    records: Sequence[dict[str, Any]], arguments: argparse.Namespace, held: Mapping[str, Any] | None = None
) -> None:
    """Writes the page of records if `--html` asks for it."""
    if not arguments.html or not records:
        return
    from ppl_vi.page.render import html_of
    from ppl_vi.page.results import page_of

    write_output_text(arguments.out / PAGE, html_of(page_of(records, held or {})))
