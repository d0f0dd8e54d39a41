"""Writes and shows the records of what was measured."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ppl_vi.runtime.files import is_replaced
from ppl_vi.runtime.outputs import write_output_text

if TYPE_CHECKING:
    from ppl_vi.comparison.comparison import Comparison


def write_records(records: Sequence[dict[str, Any]], arguments: argparse.Namespace) -> None:
    """Writes the records to `records.json`, and to the file of `--json` if there is one that can be replaced."""
    from ppl_vi.report import files

    paths = [arguments.out / "records.json"]
    if arguments.json and arguments.json != "-" and is_replaced(Path(arguments.json)):
        paths.append(Path(arguments.json))
    for path in paths:
        write_output_text(path, files.to_json(records))


def show_records(
    records: Sequence[dict[str, Any]],
    arguments: argparse.Namespace,
    show: Callable[[Sequence[dict[str, Any]], Console], None],
) -> None:
    """Prints the tables by `show`. With `--json -` they go to standard error, and the records to standard output.

    A device or a pipe that `--json` names is written to now, once: who reads it gets one document.
    """
    from ppl_vi.report import files, table

    to_stdout = arguments.json == "-"
    show(records, table.terminal(stderr=to_stdout))
    if to_stdout:
        sys.stdout.write(files.to_json(records))
        sys.stdout.flush()
    elif arguments.json and not is_replaced(Path(arguments.json)):
        write_output_text(Path(arguments.json), files.to_json(records))


def write_comparison(comparison: Comparison, arguments: argparse.Namespace) -> None:
    """Writes the records of the families that are finished, as JSON and as CSV."""
    from ppl_vi.report import files

    records = comparison.records()
    write_records(records, arguments)
    write_output_text(arguments.out / "records.csv", files.to_csv(records))


def show_comparison(comparison: Comparison, arguments: argparse.Namespace) -> None:
    """Writes `table.txt`, which has all columns, and prints the table of six, or all by `--full`.

    The verdict on each problem stands above its table; of many problems of one model there are none.
    """
    from ppl_vi.report import table
    from ppl_vi.report.brief import brief
    from ppl_vi.report.verdict import verdict_on

    records, layout, num = comparison.records(), table.layout_of(comparison), comparison.target.num_problems
    verdicts = [verdict_on(comparison, b).text for b in range(num)] if num == 1 or comparison.labels else []
    full = partial(table.show, layout=layout, verdicts=verdicts)
    write_output_text(arguments.out / "table.txt", table.as_text(records, full))
    show_records(records, arguments, full if arguments.full_table else partial(full, layout=brief(layout)))
