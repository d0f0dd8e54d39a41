"""Pyro's autoguides on posteriordb's posteriors, by the criterion of Baudart and Mandel (2021), with causes.

    python -m benchmarks.autoguides --posteriordb PATH [--only NAME ...] [--guides GUIDE ...]

A guide succeeds where every mean is within 0.3 standard deviations of the reference. Each posterior runs in a process
of its own, and so does each guide, with a limit on its processor seconds. The records go to
docs/results/autoguides.json, one a posterior and guide, and the tables into docs/autoguides.md. `--table` makes the
tables anew from the records.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.autoguides_page import renewed
from benchmarks.autoguides_published import PUBLISHED
from benchmarks.limited_process import run
from models.posteriordb import POSTERIORS, PosteriorDatabase, PosteriorDatabaseError, not_ported
from ppl_vi import cli
from ppl_vi.runtime.files import write_text
from ppl_vi.runtime.provenance import versions

RECORDS, PAGE = Path("docs/results/autoguides.json"), Path("docs/autoguides.md")
GUIDES = ("AutoNormal", "AutoMultivariateNormal", "AutoLowRankMultivariateNormal", "laplace", "AutoIAFNormal")
SECONDS, OF_TRUTH, MEMORY = 120.0, 200.0, 8e9  # of a guide, of the truth and the start: processor seconds; bytes

Record = dict[str, Any]


def measured(database: PosteriorDatabase, name: str, guides: Sequence[str], seconds: float) -> list[Record]:
    """The records of one posterior, one a guide."""
    arguments = ["--posteriordb", str(database.root), "--name", name, "--guide-seconds", str(seconds), "--guides"]
    whole = OF_TRUTH + seconds * len(guides)
    found = run("benchmarks.autoguides_case", [*arguments, *guides], seconds=whole, memory=MEMORY)
    about = {"posterior": name, "versions": versions("torch", "pyro-ppl")}
    if found.value is None:
        lost = {"success": False, "error": None, "cause": "failed", "reason": f"{found.status}: {found.reason}"}
        return [about | {"guide": guide, "grade": None} | lost for guide in guides]
    return [about | {"grade": found.value["grade"]} | record for record in found.value["guides"]]


def program(asked: argparse.Namespace) -> int:
    """Measures what was asked for; writes the records after each posterior, and the page at the end."""
    kept = json.loads(asked.records.read_text(encoding="utf-8")) if asked.records.is_file() else []
    records = {(record["posterior"], record["guide"]): record for record in kept}
    for some in () if asked.table else _measured(asked):
        records |= {(record["posterior"], record["guide"]): record for record in some}
        print("; ".join(_said(record) for record in some), flush=True)
        in_order = [records[key] for key in sorted(records)]
        write_text(asked.records, json.dumps(in_order, indent=1, allow_nan=False) + "\n")
    write_text(asked.page, renewed(asked.page.read_text(encoding="utf-8"), [records[key] for key in sorted(records)]))
    return 0


def _said(record: Record) -> str:
    error = "no answer" if record["error"] is None else f"{record['error']:.2f} sd"
    return f"{record['posterior']} {record['guide']}: {error} {record.get('cause', '')}".rstrip()


def _measured(asked: argparse.Namespace) -> Iterator[list[Record]]:
    names = asked.only or list(PUBLISHED)
    if unknown := [name for name in names if name not in POSTERIORS]:
        raise cli.UsageError(not_ported(unknown[0]))
    try:
        database = PosteriorDatabase.at(asked.posteriordb)
    except PosteriorDatabaseError as error:
        raise cli.UsageError(str(error)) from error
    with ThreadPoolExecutor(asked.jobs) as pool:
        yield from pool.map(lambda name: measured(database, name, asked.guides, asked.seconds), names)


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = cli.Parser(prog="autoguides", description=(__doc__ or "").splitlines()[0])
    found.add_argument("--posteriordb", metavar="PATH", help="a clone of posteriordb (PPL_VI_POSTERIORDB)")
    found.add_argument("--only", metavar="NAME", nargs="+", help="posteriors (those of the published table)")
    found.add_argument("--guides", metavar="GUIDE", nargs="+", default=list(GUIDES), help=f"{', '.join(GUIDES)}")
    found.add_argument("--jobs", type=int, default=1, help="how many posteriors run at once (1)")
    found.add_argument("--seconds", type=float, default=SECONDS, help=f"processor seconds of a guide ({SECONDS:g})")
    found.add_argument("--records", type=Path, default=RECORDS, help=f"where the records go ({RECORDS})")
    found.add_argument("--page", type=Path, default=PAGE, help=f"the page whose tables are renewed ({PAGE})")
    found.add_argument("--table", action="store_true", help="measure nothing: only renew the tables")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns the exit code."""
    return cli.run(program, parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
