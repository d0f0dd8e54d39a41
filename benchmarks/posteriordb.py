"""posteriordb's posteriors: log p(x) with a stated error, beside the published draws and another route.

    python -m benchmarks.posteriordb --posteriordb PATH [--only NAME ...] [--jobs 2]

PATH is a clone of posteriordb, which may also be named by the environment variable `PPL_VI_POSTERIORDB`. Each posterior
runs in a process of its own, with a limit on its processor seconds and memory. The records go to
docs/results/posteriordb.json, a list with one record a posterior, and the table into docs/posteriordb.md. With `--only`
these posteriors alone are measured anew, and the others keep their records; `--table` makes the table anew from the
records that are there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.limited_process import run
from benchmarks.posteriordb_page import line, renewed
from models.posteriordb import POSTERIORS, PosteriorDatabase, PosteriorDatabaseError, not_ported
from ppl_vi import cli
from ppl_vi.runtime.files import write_text
from ppl_vi.runtime.provenance import versions

RECORDS, PAGE = Path("docs/results/posteriordb.json"), Path("docs/posteriordb.md")
SECONDS, MEMORY = 200.0, 8e9  # of a posterior: processor seconds and bytes

Record = dict[str, Any]


def measured(database: PosteriorDatabase, name: str, seconds: float, memory: float) -> Record:
    """The record of one posterior, made in a process of its own."""
    arguments = ["--posteriordb", str(database.root), "--name", name]
    found = run("benchmarks.posteriordb_case", arguments, seconds=seconds, memory=memory)
    described = database.posterior(name)
    return {
        "posterior": name,
        "model": described["model_name"],
        "data": described["data_name"],
        "published_draws": database.reference_name(name),
        "status": found.status,
        "reason": found.reason,
        "total_seconds": round(found.seconds, 2),
        **(found.value or {}),
        "versions": versions("torch", "pyro-ppl", "numpy", "scipy"),
    }


def chosen(only: Sequence[str] | None) -> list[str]:
    """The names that were asked for, or all that are ported.

    Raises:
        PosteriorDatabaseError: one of them is not ported.
    """
    for name in only or ():
        if name not in POSTERIORS:
            raise PosteriorDatabaseError(not_ported(name))
    return list(only or POSTERIORS)


def program(asked: argparse.Namespace) -> int:
    """Measures what was asked for; writes the records after each posterior, and the page at the end."""
    records = {record["posterior"]: record for record in _read(asked.records)}
    if not asked.table:
        for record in _measured(asked):
            records[record["posterior"]] = record
            print(line(record), flush=True)
            _write(asked.records, records)
    write_text(asked.page, renewed(asked.page.read_text(encoding="utf-8"), _sorted(records)))
    return 0


def _measured(asked: argparse.Namespace) -> Iterator[Record]:
    try:
        database, names = PosteriorDatabase.at(asked.posteriordb), chosen(asked.only)
    except PosteriorDatabaseError as error:
        raise cli.UsageError(str(error)) from error
    with ThreadPoolExecutor(asked.jobs) as pool:
        yield from pool.map(lambda name: measured(database, name, asked.seconds, asked.memory * 1e9), names)


def _sorted(records: dict[str, Record]) -> list[Record]:
    order = {name: place for place, name in enumerate(sorted(POSTERIORS))}
    return sorted((record for name, record in records.items() if name in order), key=lambda r: order[r["posterior"]])


def _read(path: Path) -> list[Record]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


def _write(path: Path, records: dict[str, Record]) -> None:
    write_text(path, json.dumps(_sorted(records), indent=1, allow_nan=False) + "\n")


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = cli.Parser(prog="posteriordb", description=(__doc__ or "").splitlines()[0])
    found.add_argument("--posteriordb", metavar="PATH", help="a clone of posteriordb (PPL_VI_POSTERIORDB)")
    found.add_argument("--only", metavar="NAME", nargs="+", help="posteriors, by posteriordb's names (all)")
    found.add_argument("--jobs", type=int, default=1, help="how many posteriors run at once (1)")
    found.add_argument("--seconds", type=float, default=SECONDS, help="processor seconds of one at most (200)")
    found.add_argument("--memory", type=float, default=MEMORY / 1e9, help="GB of one at most (8)")
    found.add_argument("--records", type=Path, default=RECORDS, help=f"where the records go ({RECORDS})")
    found.add_argument("--page", type=Path, default=PAGE, help=f"the page whose tables are renewed ({PAGE})")
    found.add_argument("--table", action="store_true", help="measure nothing: only renew the tables")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns the exit code."""
    return cli.run(program, parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
