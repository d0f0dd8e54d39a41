"""How fast SVI's steps are: Pyro's, ours, NumPyro's, PyMC's, and a loop written by hand, side by side.

    python -m benchmarks.speed [--problems NAME …] [--replicas N …] [--engines NAME …] [--quick] [--growth]

With no options it takes 20 to 25 minutes on one core, with `--quick` about 8.

Every measurement has a process of its own with one thread, pinned to the same core. All engines have the same
precision, the same initial values and the same learning rule (Adam). The table shows the time of a step of all replicas
together: the median of several timed blocks, and their range. Engines that run fits one by one are measured on one fit,
and the time is multiplied. The time to accuracy is what a user waits for, compilation included, until the median
replica is within 1e-3 nats of the best member of its family.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.speed_case import ENTRY, ONE_BY_ONE, WHOLE_STEPS, Case, Timing
from benchmarks.speed_process import in_own_process
from ppl_vi import cli

if TYPE_CHECKING:
    from rich.console import Console

    from ppl_vi.report.columns import Footnotes

OUT = Path("results/speed")
MEASURED_PROBLEMS = ("toy", "eight_schools", "logistic_regression")
DTYPES = ("float32", "float64")
ACCURACY_REPLICAS = (1, 1000)  # the time to accuracy is measured for these numbers of fits
# Fields of `speed_case.Case` that say how long to measure, without and with --quick.
FULL: dict[str, Any] = {"blocks": 7, "block_seconds": 0.15, "accuracy": 4.0}
QUICK: dict[str, Any] = {"blocks": 5, "block_seconds": 0.05, "accuracy": 0.0}
QUICK_REPLICAS = (1, 1000)
BASELINE = "numpyro"  # the table shows the ratio of its time a step to that of each engine
TITLES = {
    "pyro": "Pyro, Trace_ELBO",
    "pyro_jit": "Pyro, JitTrace_ELBO",
    "batched": "ppl_vi, batched",
    "compiled": "ppl_vi, compiled",
    "fit": "ppl_vi, whole fit",
    "numpyro": "NumPyro",
    "pymc": "PyMC, ADVI",
    "floor": "C++ by hand",
}
ENGINE_WIDTH = max(map(len, TITLES.values()))
HEADINGS = (
    "µs\na step", "of the\nblocks", "ns a fit\nand step", "NumPyro's\n/ this", "compile\n[s]", "to 1e-3\nnats [s]",
)  # fmt: skip
NOT_INSTALLED = "not installed"
GROWTH_ENGINES = ("batched", "compiled", "fit", "numpyro", "floor")
STEP_ENGINES = tuple(name for name in ENTRY if name not in WHOLE_STEPS)
ONE_FIT = frozenset({"pymc"})  # measured with one replica alone

Record = dict[str, Any]


def cases(arguments: argparse.Namespace) -> list[Case]:
    """What the options ask for, in the order of the table.

    Raises:
        UsageError: no such problem or engine, or too few blocks.
    """
    problems = _among("problem", arguments.problems or MEASURED_PROBLEMS, MEASURED_PROBLEMS)
    engines = _among("engine", arguments.engines or STEP_ENGINES, STEP_ENGINES)
    from benchmarks.speed_problems import PROBLEMS

    effort = QUICK if arguments.quick else FULL
    return [
        Case(
            problem=problem,
            guide=guide,
            engine=engine,
            replicas=replicas,
            dtype=arguments.dtype,
            num_particles=arguments.num_particles,
            **effort | ({} if replicas in ACCURACY_REPLICAS and not arguments.no_accuracy else {"accuracy": 0.0}),
        )
        for problem in problems
        for guide in PROBLEMS[problem].guides
        for replicas in arguments.replicas or (QUICK_REPLICAS if arguments.quick else PROBLEMS[problem].replicas)
        for engine in engines
        if (engine not in ONE_FIT or replicas == 1) and (engine != "floor" or guide == "lognormal")
    ]


def _among(what: str, asked: Sequence[str], known: Sequence[str]) -> list[str]:
    for name in asked:
        if name not in known:
            raise cli.UsageError(f"unknown {what} '{name}'; there are {', '.join(known)}")
    return list(dict.fromkeys(asked))


def record_of(case: Case, timing: Timing, environment: Record) -> Record:
    """One line of the results."""
    scale = case.replicas / timing.measured_replicas if timing.measured_replicas else 1
    times = [seconds * scale * 1e6 for seconds in timing.seconds_per_step]
    median = statistics.median(times) if times else None
    return {
        "problem": case.problem,
        "guide": case.guide,
        "engine": case.engine,
        "replicas": case.replicas,
        "size": case.size,
        "num_particles": case.num_particles,
        "us_per_step": median,
        "us_per_step_range": [min(times), max(times)] if times else None,
        "ns_per_fit_step": None if median is None else median / case.replicas * 1e3,
        "compile_seconds": timing.compile_seconds,
        "seconds_to_accuracy": timing.seconds_to_accuracy,
        "steps_to_accuracy": timing.steps_to_accuracy,
        "no_accuracy": timing.no_accuracy,
        "extrapolated_from": timing.measured_replicas if scale != 1 else None,
        "missing": timing.missing,
        "dtype": case.dtype,
        "blocks": len(times),
        "steps_per_block": timing.steps_per_block,
        **environment,
    }


def environment(core: int | None) -> Record:
    """Where it was measured; `load` is how many processes wanted a core during the last minute."""
    from ppl_vi.runtime.provenance import versions

    return {
        "threads": 1,
        "core": core,
        "cpu": _cpu(),
        "vector_bits": _vector_bits(),
        "load": round(os.getloadavg()[0], 1),
        "versions": versions("jax", "numpyro", "pymc"),
    }


def _cpu() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _vector_bits() -> int | None:
    """Bits of the processor's vector registers, as Linux on x86 tells; None elsewhere."""
    file = Path("/proc/cpuinfo")
    flags = set(file.read_text().split()) if file.exists() else set()
    return next((bits for name, bits in (("avx512f", 512), ("avx2", 256), ("sse2", 128)) if name in flags), None)


def _core() -> int | None:
    """The core that all measurements are pinned to, where the system can: the last."""
    return max(os.sched_getaffinity(0)) if sys.platform == "linux" else None


def measured(chosen: Sequence[Case]) -> Iterator[Record]:
    """The records, one after another; an engine that runs fits one by one is measured once, for all their numbers."""
    core = _core()
    singles: dict[Case, Timing] = {}
    for case in cli.followed(chosen, len(chosen), "measured"):
        single = replace(case, replicas=1, accuracy=0.0)
        timing = singles.get(single)
        if timing is None:
            timing = in_own_process(case, core)
            if case.engine in ONE_BY_ONE:
                singles[single] = timing
        elif case.accuracy:
            why = f"{case.replicas} fits one by one were not run"
            timing = replace(timing, seconds_to_accuracy=None, steps_to_accuracy=None, no_accuracy=why)
        yield record_of(case, timing, environment(core))


def show(records: Sequence[Record], console: Console) -> None:
    """One block for each problem, guide and number of fits."""
    from rich import box
    from rich.table import Table

    from ppl_vi.report.columns import Footnotes

    notes = Footnotes()
    for (problem, guide, replicas, particles, size, _), group in _grouped(records):
        shown = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="")
        more = f", {particles} draws" * (particles > 1) + f", size {size}" * (size is not None)
        console.print(f"{problem}, {guide}: {replicas:,} at once{more}", style="bold", highlight=False, markup=False)
        shown.add_column("engine", min_width=ENGINE_WIDTH, no_wrap=True)
        for heading in HEADINGS:
            shown.add_column(heading, justify="right", no_wrap=True, min_width=9)
        base = next((record["us_per_step"] for record in group if record["engine"] == BASELINE), None)
        for record in group:
            shown.add_row(TITLES[record["engine"]], *_cells(record, base, notes))
        console.print("", shown, "", highlight=False, markup=False, emoji=False)
    lines = [f"{notes.mark(text)} {text}" for text in notes.texts]
    console.print(*lines, *_about(records), sep="\n", highlight=False, markup=False, emoji=False)


def _about(records: Sequence[Record]) -> list[str]:
    first = records[0]
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
    lines = [f"{first['dtype']}, one draw a step unless said otherwise, one thread of {first['cpu']}", versions]
    if any(record["extrapolated_from"] for record in records):
        lines.insert(0, "~ fits one by one: measured on one, and multiplied")
    return lines


def _grouped(records: Sequence[Record]) -> Iterator[tuple[tuple[Any, ...], list[Record]]]:
    keys = ("problem", "guide", "replicas", "num_particles", "size", "axis")
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        groups.setdefault(tuple(record.get(key) for key in keys), []).append(record)
    yield from groups.items()


def _cells(record: Record, base: float | None, notes: Footnotes) -> list[str]:
    from ppl_vi.report.numbers import MISSING, three_digits

    time = record["us_per_step"]
    if time is None:
        absent = record["missing"].startswith(NOT_INSTALLED)
        return [NOT_INSTALLED if absent else MISSING + notes.mark(record["missing"]), *[""] * (len(HEADINGS) - 1)]
    about = "~" if record["extrapolated_from"] else ""
    to_accuracy = three_digits(record["seconds_to_accuracy"])
    low, high = (three_digits(value) for value in record["us_per_step_range"])
    return [
        about + three_digits(time),
        f"{low} to {high}",
        three_digits(record["ns_per_fit_step"]),
        MISSING if base is None else three_digits(base / time),
        three_digits(record["compile_seconds"]),
        to_accuracy + (notes.mark(record["no_accuracy"]) if record["no_accuracy"] else ""),
    ]


def program(arguments: argparse.Namespace) -> int:
    """Measures, shows, writes."""
    run = _growth if arguments.growth else _comparison
    return run(arguments)


def _comparison(arguments: argparse.Namespace) -> int:
    chosen = cases(arguments)
    cli.check_outputs(arguments)
    records = []
    for record in measured(chosen):
        records.append(record)
        cli.write_records(records, arguments)
    cli.show_records(records, arguments, show)
    return 0


def _growth(arguments: argparse.Namespace) -> int:
    engines = _among("engine", arguments.engines or GROWTH_ENGINES, tuple(ENTRY))
    cli.check_outputs(arguments)
    from benchmarks.speed_growth import figure, growth_cases

    effort = {key: (QUICK if arguments.quick else FULL)[key] for key in ("blocks", "block_seconds")}
    axes, chosen = zip(*growth_cases(engines, arguments.dtype, arguments.quick, effort), strict=True)
    records = []
    for axis, record in zip(axes, measured(chosen), strict=True):
        records.append(record | {"axis": axis})
        cli.write_records(records, arguments)
    cli.show_records(records, arguments, show)

    def draw() -> None:
        cli.write_figure(arguments.out / "growth.png", figure(records, TITLES))

    return cli.drawn(draw, arguments)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = cli.Parser(prog="speed", description=(__doc__ or "").splitlines()[0])
    found.add_argument("--problems", nargs="+", metavar="NAME", help=f"{', '.join(MEASURED_PROBLEMS)} (all)")
    found.add_argument(
        "--replicas", nargs="+", type=cli.whole(1), metavar="N", help="fits at once (1, 1000, 10000; 100000)"
    )
    found.add_argument(
        "--engines", nargs="+", metavar="NAME", help=f"{', '.join(ENTRY)}; fit with --growth alone (all)"
    )
    found.add_argument("--num-particles", type=cli.whole(1), default=1, metavar="N", help="draws a step (1)")
    found.add_argument("--dtype", choices=DTYPES, default="float32", help="of all sides (float32)")
    found.add_argument("--no-accuracy", action="store_true", help="leave out the time to accuracy")
    found.add_argument("--growth", action="store_true", help="instead: how cost grows, as figures")
    cli.add_run_options(found, OUT, "1 and 1000 fits, short blocks, no time to accuracy")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns the exit code."""
    return cli.run(program, parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
