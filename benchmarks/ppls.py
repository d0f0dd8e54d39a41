"""Which system's default finds the best approximation of its family, and how long that takes.

    python -m benchmarks.ppls [--quick] [--models NAME ...] [--systems NAME ...] [--resume]

Models of the zoo, written again for each system, are fitted by each at its default setting and at a common one: Adam of
step size 0.01, 10 draws a step, 10,000 steps. Before anything is compared, log p(x, z) of each copy is compared with
ours at 200 points of the posterior, to 1e-8 nats. Fits are measured after 100, 300, 1000, ... steps. Each fit runs in a
process of its own, on one core with one thread, for at most 900 s of processor time. Seconds are of processor time,
compilers included. A system that is not installed is shown as missing, and one that fails as failed, in its own words.

Records, a table, a heat map and what they say in words are written to results/ppls/, the records after each fit.
`--resume` keeps the fits that are there, and runs those that are missing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.ppls_models import MODELS, QUICK
from ppl_vi import cli
from ppl_vi.runtime.outputs import write_output_text

OUT = Path("results/ppls")
RECORDS = "records.json"
Key = tuple[str, str, str]


def program(arguments: argparse.Namespace) -> int:
    """Fits, measures, shows and writes."""
    from benchmarks.ppls_systems import SYSTEMS
    from ppl_vi.report import files

    cli.writable_folder("--out", arguments.out)
    systems = arguments.systems or list(SYSTEMS)
    unknown = [name for name in systems if name not in SYSTEMS]
    if unknown:
        raise cli.UsageError(f"unknown system '{unknown[0]}'; there are {', '.join(SYSTEMS)}")
    place = arguments.out / RECORDS
    records = _kept(place) if arguments.resume else {}
    for model in arguments.models or (QUICK if arguments.quick else MODELS):
        for record in of_model(model, systems, set(records)):
            records[_key(record)] = record
            write_output_text(place, files.to_json(_in_order(records.values())))
    _show(_in_order(records.values()), arguments.out)
    return 0


def _key(record: dict[str, Any]) -> Key:
    return record["model"], record["system"], record["setting"]


def _kept(place: Path) -> dict[Key, dict[str, Any]]:
    """The records of an earlier run, but those of systems that were not installed."""
    if not place.is_file():
        return {}
    try:
        return {_key(one): one for one in json.loads(place.read_text()) if one["status"] != "missing"}
    except (ValueError, TypeError, KeyError) as error:
        raise cli.UsageError(f"--resume: {place} holds no records of benchmarks.ppls") from error


def _in_order(records: Collection[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records in the order of models, systems and settings, whenever they were made."""
    from benchmarks.ppls_systems import SETTINGS, SYSTEMS

    systems = list(SYSTEMS)
    return sorted(
        records,
        key=lambda one: (MODELS.index(one["model"]), systems.index(one["system"]), SETTINGS.index(one["setting"])),
    )


def of_model(model: str, systems: Sequence[str], done: Collection[Key]) -> Iterator[dict[str, Any]]:
    """The records of each system on one model at each setting that are not done."""
    from benchmarks.ppls_records import problem_of, record_of, settings_of

    todo = [(system, setting) for system in systems for setting in settings_of(system)]
    todo = [pair for pair in todo if (model, *pair) not in done]
    problem = problem_of(model) if todo else None
    for system, setting in todo:
        assert problem is not None
        print(f"{model}: {system}, {setting}", file=sys.stderr, flush=True)
        yield record_of(problem, system, setting)


def _show(records: Sequence[dict[str, Any]], out: Path) -> None:
    """The table, the heat map and the verdict."""
    from benchmarks import ppls_page
    from benchmarks.speed_whole import markdown, show

    cells = ppls_page.rows(records)
    show("Systems against the exact posterior; nats, and seconds of processor time", ppls_page.HEADINGS, cells)
    write_output_text(out / "table.md", markdown(ppls_page.HEADINGS, cells))
    if any(record["family"] for record in records):
        cli.write_figure(out / "heat_map.png", ppls_page.heat_map(records))
    lines = ppls_page.verdict(records)
    write_output_text(out / "verdict.md", "".join(f"- {line}\n" for line in lines))
    print("\n".join(lines))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = cli.Parser(prog="ppls", description=(__doc__ or "").splitlines()[0])
    found.add_argument("--models", nargs="+", metavar="NAME", choices=MODELS, help=f"{', '.join(MODELS)} (all)")
    found.add_argument("--systems", nargs="+", metavar="NAME", help="systems by the names in the table (all)")
    found.add_argument("--quick", action="store_true", help=f"{' and '.join(QUICK)} alone")
    found.add_argument("--resume", action="store_true", help="keep the fits whose records are in the folder")
    cli.add_out(found, OUT)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns the exit code."""
    return cli.run(program, parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
