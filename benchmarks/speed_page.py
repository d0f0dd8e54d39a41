"""Measures everything that docs/speed.md shows, and renews its tables, records and figure.

    python -m benchmarks.speed_page [--quick] [--only PART ...] [--tables]

The parts are: steps (`benchmarks.speed`), growth (the same with `--growth`), fits (`benchmarks.speed_fit`) and compare
(`benchmarks.speed_compare`). In full it takes about an hour. The records go to
docs/results, and the tables into docs/speed.md, each between two comments that name it; `--tables` makes them anew from
the records that are there. The sentences between the tables stay as they are: read them again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import speed, speed_compare, speed_fit
from benchmarks.speed_whole import MISSING, Record, markdown
from ppl_vi import cli
from ppl_vi.report.numbers import three_digits
from ppl_vi.runtime.files import write_text

OUT = Path("results/speed_page")
DOCS = Path("docs")
PAGE, PAGE_WIDTH = "speed.md", 120
EMPTY = "The run was broken off before these were measured.\n"
STEP_ENGINES = ("pyro", "batched", "compiled", "numpyro", "floor")
STEP_HEADINGS = (
    "problem, guide", "fits at once", "Pyro's `SVI`", "batched", "compiled", "of the blocks", "NumPyro",
    "NumPyro's / compiled", "C++ by hand", "first steps, s", "NumPyro's",
)  # fmt: skip


@dataclass(frozen=True)
class Part:
    """A part of the page.

    Attributes:
        run: the program that measures it.
        options: what that is given, besides `--out` and `--quick`.
        records: the name of its file in docs/results.
        tables: its tables by name, each made of the records.
        figures: what else is copied, from its folder into docs.
    """

    run: Callable[[Sequence[str]], int]
    options: tuple[str, ...]
    records: str
    tables: dict[str, Callable[[Sequence[Record]], str]]
    figures: tuple[tuple[str, str], ...] = ()


def _named(tables: Sequence[tuple[str, str, Sequence[str], Callable[[Sequence[Record]], Any]]]) -> dict[str, Any]:
    """Tables by name, as the programs of whole verbs have them."""

    def maker(headings: Sequence[str], cells: Callable[[Sequence[Record]], Any]) -> Callable[[Sequence[Record]], str]:
        return lambda records: markdown(headings, cells(records)) if cells(records) else EMPTY

    return {name: maker(headings, cells) for name, _, headings, cells in tables}


def step_rows(records: Sequence[Record]) -> list[list[str]]:
    """A row for each problem, guide and number of fits: microseconds for a step of all fits."""
    groups: dict[tuple[Any, ...], dict[str, Record]] = {}
    for record in records:
        group = groups.setdefault(tuple(record[key] for key in ("problem", "guide", "replicas")), {})
        group[record["engine"]] = record
    return [_step_row(problem, guide, replicas, group) for (problem, guide, replicas), group in groups.items()]


def _step_row(problem: str, guide: str, replicas: int, group: dict[str, Record]) -> list[str]:
    def of(engine: str, field: str = "us_per_step") -> Any:
        return group[engine][field] if engine in group else None

    def cell(value: Any) -> str:
        return MISSING if value is None else three_digits(value)

    compiled, numpyro, spread = of("compiled"), of("numpyro"), of("compiled", "us_per_step_range")
    ratio = numpyro / compiled if compiled and numpyro else None
    title = f"{problem.replace('_', ' ')}, {guide}"
    blocks = f"{three_digits(spread[0])} to {three_digits(spread[1])}" if spread else MISSING
    times = [cell(of("pyro")), cell(of("batched")), cell(compiled), blocks, cell(numpyro), cell(ratio)]
    ready = [cell(of(engine, "compile_seconds")) for engine in ("compiled", "numpyro")]
    return [title, f"{replicas:,}", *times, cell(of("floor")), *ready]


def about(records: Sequence[Record]) -> str:
    """Where records were measured, as sentences."""
    first, loads = records[0], [record["load"] for record in records if "load" in record]
    bits = f" with {first['vector_bits']}-bit vector registers" if first.get("vector_bits") else ""
    busy = f" At the median {statistics.median(loads):.1f} processes wanted one of its cores." if loads else ""
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items() if name != "ppl_vi")
    text = f"Measured with one thread on one core of {first['cpu']}{bits}.{busy} Versions: {versions}."
    return textwrap.fill(text, PAGE_WIDTH) + "\n"


PARTS = {
    "steps": Part(
        speed.main,
        ("--replicas", "1", "1000", "--engines", *STEP_ENGINES, "--no-accuracy"),
        "speed.json",
        {"steps": lambda records: markdown(STEP_HEADINGS, step_rows(records)), "about steps": about},
    ),
    "growth": Part(
        speed.main, ("--growth",), "growth.json", {"about growth": about}, (("growth.png", "speed_growth.png"),)
    ),
    "fits": Part(speed_fit.main, (), "speed_fit.json", _named(speed_fit.TABLES) | {"about fits": about}),
    "compare": Part(
        speed_compare.main, (), "speed_compare.json", _named(speed_compare.TABLES) | {"about compare": about}
    ),
}


def with_table(page: str, name: str, table: str) -> str:
    """The page with a table between `<!-- name -->` and `<!-- end of name -->`.

    Raises:
        ValueError: the page has no such place.
    """
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    before, found, rest = page.partition(begin)
    _, ended, after = rest.partition(end)
    if not found or not ended:
        raise ValueError(f"the page has no place '{begin.strip()}' to '{end}' for the table")
    return f"{before}{begin}\n{table}\n{end}{after}"


def renewed(page: str, part: Part, records: Sequence[Record]) -> str:
    """The page with all tables of a part."""
    for name, make in part.tables.items():
        page = with_table(page, name, make(records))
    return page


def program(arguments: argparse.Namespace) -> int:
    """Measures the parts, and renews the page."""
    page = arguments.docs / PAGE
    for name in arguments.only or PARTS:
        if name not in PARTS:
            raise cli.UsageError(f"unknown part '{name}'; there are {', '.join(PARTS)}")
        part, folder = PARTS[name], arguments.out / name
        kept = arguments.docs / "results" / part.records
        if not arguments.tables:
            code = part.run([*part.options, *(["--quick"] if arguments.quick else []), "--out", str(folder)])
            if code:
                return code
            shutil.copy(folder / "records.json", kept)
            for source, destination in part.figures:
                shutil.copy(folder / source, arguments.docs / destination)
        write_text(page, renewed(page.read_text(encoding="utf-8"), part, json.loads(kept.read_text(encoding="utf-8"))))
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = cli.Parser(prog="speed_page", description=(__doc__ or "").splitlines()[0])
    found.add_argument("--only", nargs="+", metavar="PART", help=f"{', '.join(PARTS)} (all)")
    found.add_argument("--quick", action="store_true", help="fewer cases and shorter blocks")
    found.add_argument("--tables", action="store_true", help="measure nothing: only renew the tables")
    found.add_argument("--docs", type=Path, default=DOCS, metavar="DIR", help=f"folder of the page ({DOCS})")
    cli.add_out(found, OUT)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns the exit code."""
    return cli.run(program, parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
