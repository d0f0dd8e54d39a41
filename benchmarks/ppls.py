"""Which system's default finds the best approximation of its family, and how long that takes.

    python -m benchmarks.ppls [--quick] [--models NAME ...] [--systems NAME ...]

Models of the zoo, written again for each system, are fitted by each at its default setting and at a common one: Adam of
step size 0.01, 10 draws a step, 10,000 steps. Before anything is compared, log p(x, z) of each copy is compared with
ours at 200 points of the posterior, to 1e-8 nats. Fits are measured after 100, 300, 1000, ... steps. Each system runs
in a process of its own for each model, on one core with one thread. Seconds are of processor time, compilers included.
A system that is not installed is shown as missing, and one that fails as failed, in its own words. Records, a table and
a heat map are written to results/ppls/.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.ppls_models import MODELS, QUICK
from ppl_vi import cli
from ppl_vi.runtime.outputs import write_output_text

OUT = Path("results/ppls")


def program(arguments: argparse.Namespace) -> int:
    """Fits, measures, shows and writes."""
    from benchmarks import ppls_page
    from benchmarks.ppls_systems import SYSTEMS
    from benchmarks.speed_whole import markdown, show
    from ppl_vi.report import files

    cli.writable_folder("--out", arguments.out)
    systems = arguments.systems or list(SYSTEMS)
    unknown = [name for name in systems if name not in SYSTEMS]
    if unknown:
        raise cli.UsageError(f"unknown system '{unknown[0]}'; there are {', '.join(SYSTEMS)}")
    records = []
    for model in arguments.models or (QUICK if arguments.quick else MODELS):
        for found in of_model(model, systems):
            records += found
            write_output_text(arguments.out / "records.json", files.to_json(records))
    cells = ppls_page.rows(records)
    show("Systems against the exact posterior; nats, and seconds of processor time", ppls_page.HEADINGS, cells)
    write_output_text(arguments.out / "table.md", markdown(ppls_page.HEADINGS, cells))
    if any(record["family"] for record in records):
        cli.write_figure(arguments.out / "heat_map.png", ppls_page.heat_map(records))
    for line in ppls_page.verdict(records):
        print(line)
    return 0


def of_model(model: str, systems: Sequence[str]) -> Iterator[list[dict[str, Any]]]:
    """The records of each system on one model."""
    import ppl_vi
    from benchmarks.ppls_process import in_own_process
    from benchmarks.ppls_records import NUM_POINTS, best_of, records_of
    from models import ZOO

    truth = ppl_vi.ground_truth(ZOO[model]())
    best, points = best_of(truth), truth.draws(NUM_POINTS, seed=0)
    arrays = {name: value.numpy() for name, value in points.items()}
    for system in systems:
        print(f"{model}: {system}", file=sys.stderr, flush=True)
        yield records_of(model, system, truth, best, points, in_own_process(system, model, arrays))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = cli.Parser(prog="ppls", description=(__doc__ or "").splitlines()[0])
    found.add_argument("--models", nargs="+", metavar="NAME", choices=MODELS, help=f"{', '.join(MODELS)} (all)")
    found.add_argument("--systems", nargs="+", metavar="NAME", help="systems by the names in the table (all)")
    found.add_argument("--quick", action="store_true", help=f"{' and '.join(QUICK)} alone")
    cli.add_out(found, OUT)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns the exit code."""
    return cli.run(program, parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
