"""The command `ppl-vi report`: one HTML page of what was measured."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppl_vi import cli
from ppl_vi.runtime.outputs import why_not_file, write_output_text

if TYPE_CHECKING:
    from ppl_vi.page.parts import Page

OUT = Path("report.html")
SQLITE = b"SQLite format 3\0"  # with which every file of SQLite begins
EXAMPLES = """examples:
  ppl-vi report results -o report.html
  ppl-vi report results/toy_posterior
  ppl-vi report sweep.db -o sweep.html"""


def add(commands: Any) -> None:
    """Adds the command to those of a parser."""
    text = "one HTML page of a sweep or a comparison, which needs no network"
    parser = cli.add_command(commands, "report", text, EXAMPLES)
    parser.add_argument(
        "what", type=Path, metavar="FILE | FOLDER", help="a sweep's file, or a folder of compare, a benchmark or save"
    )
    parser.add_argument("-o", "--out", type=Path, default=OUT, metavar="FILE", help=f"the page ({OUT})")
    parser.set_defaults(program=report_program)


def report_program(arguments: argparse.Namespace) -> int:
    """Writes the page; the exit code."""
    if why := why_not_file(arguments.out):
        raise cli.UsageError(f"--out: {why}")
    if not arguments.what.exists():
        raise cli.UsageError(f"there is no file or folder '{arguments.what}'")
    from ppl_vi.page.render import html_of

    write_output_text(arguments.out, html_of(_page(arguments.what)))
    return 0


def _page(path: Path) -> Page:
    from ppl_vi.page.results import NoResultsError, page_at
    from ppl_vi.sweeps.checks import StoreError

    try:
        if path.is_file() and path.read_bytes()[: len(SQLITE)] == SQLITE:
            from ppl_vi.sweeps.page import page_of

            return page_of(path)
        return page_at(path)
    except (NoResultsError, StoreError) as error:
        raise cli.UsageError(str(error)) from error
