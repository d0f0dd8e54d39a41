"""What a user waits for: a whole `fit` on data of real size, beside NumPyro's whole run of as many steps.

    python -m benchmarks.speed_fit [--quick] [--rounds N]

Ours is `ppl_vi.fit` with its default settings but for steps, draws and replicas: its start, its preconditioners, its
steps and its convergence checks. NumPyro's is `SVI.init` and a jitted `fori_loop` of `SVI.update`, which checks
nothing. Both compute in double precision on one core. Each case runs in a process of its own: a first run of each side,
tracing and compiling included, in seconds by the clock, then rounds in which the sides take turns, in seconds of
processor time. NumPyro is the extra `peers`; without it, its columns say so.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.vae_speed import installed, one_core
from ppl_vi import cli
from ppl_vi.runtime.outputs import write_output_text

OUT = Path("results/speed_fit")
NUM_GROUPS = 20  # of the hierarchy
HEADINGS = (
    "model, AutoNormal", "rows", "fits x draws x steps", "first fit, s", "NumPyro's", "a fit, s", "NumPyro's", "ratio",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        model: "poisson" or "hierarchy".
        rows: of the data.
        replicas: fits of the same problem.
        particles: draws in each step.
        steps: SVI steps.
    """

    model: str
    rows: int
    replicas: int
    particles: int
    steps: int


CASES = (
    Case("poisson", 200, 1, 16, 500),
    Case("poisson", 2_000, 1, 16, 500),
    Case("poisson", 20_000, 1, 16, 500),
    Case("poisson", 200, 100, 1, 500),
    Case("hierarchy", 160, 1, 1, 1000),
    Case("hierarchy", 160, 100, 1, 1000),
)
TITLES = {"poisson": "Poisson regression, 5 coefficients", "hierarchy": f"normal hierarchy, {NUM_GROUPS} groups"}


def data_of(case: Case) -> tuple[Any, ...]:
    """The data of a case: the same for both sides, as NumPy arrays."""
    import numpy as np

    generator = np.random.default_rng(0)
    if case.model == "poisson":
        features = 0.3 * generator.standard_normal((case.rows, 5))
        return features, generator.poisson(np.exp(0.3 * features.sum(1))).astype(float)
    group = np.arange(case.rows) % NUM_GROUPS
    return generator.standard_normal(NUM_GROUPS)[group] + generator.standard_normal(case.rows), group


def our_run(case: Case) -> Callable[[], Any]:
    """A whole fit of ours."""
    import pyro
    import pyro.distributions as dist
    import torch
    from pyro.infer.autoguide import AutoNormal

    import ppl_vi

    def poisson(features: Any, counts: Any) -> None:
        weights = pyro.sample("weights", dist.Normal(torch.zeros(5), 1.0).to_event(1))
        with pyro.plate("rows", len(counts)):
            pyro.sample("counts", dist.Poisson((features @ weights).exp()), obs=counts)

    def hierarchy(y: Any, group: Any) -> None:
        mean, scale = pyro.sample("mean", dist.Normal(0.0, 5.0)), pyro.sample("scale", dist.HalfCauchy(5.0))
        with pyro.plate("groups", NUM_GROUPS):
            effect = pyro.sample("effect", dist.Normal(mean, scale))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(effect[group], 1.0), obs=y)

    model = {"poisson": poisson, "hierarchy": hierarchy}[case.model]
    target = ppl_vi.Target.of(model, tuple(torch.from_numpy(part) for part in data_of(case)))
    settings = {"num_replicas": case.replicas, "num_particles": case.particles, "num_steps": case.steps}
    return partial(ppl_vi.fit, target, AutoNormal, engine="compiled", seed=0, **settings)  # type: ignore[arg-type]


def numpyro_run(case: Case) -> Callable[[], Any]:
    """A whole run of NumPyro's, compiled at its first call."""
    import jax
    import numpyro
    import numpyro.distributions as dist
    from numpyro.infer import SVI, Trace_ELBO
    from numpyro.infer.autoguide import AutoNormal

    jax.config.update("jax_enable_x64", True)

    def poisson(features: Any, counts: Any) -> None:
        weights = numpyro.sample("weights", dist.Normal(jax.numpy.zeros(5), 1.0).to_event(1))
        with numpyro.plate("rows", len(counts)):
            numpyro.sample("counts", dist.Poisson(jax.numpy.exp(features @ weights)), obs=counts)

    def hierarchy(y: Any, group: Any) -> None:
        mean, scale = numpyro.sample("mean", dist.Normal(0.0, 5.0)), numpyro.sample("scale", dist.HalfCauchy(5.0))
        with numpyro.plate("groups", NUM_GROUPS):
            effect = numpyro.sample("effect", dist.Normal(mean, scale))
        with numpyro.plate("rows", len(y)):
            numpyro.sample("y", dist.Normal(effect[group], 1.0), obs=y)

    model, data = {"poisson": poisson, "hierarchy": hierarchy}[case.model], data_of(case)
    svi = SVI(model, AutoNormal(model), numpyro.optim.Adam(0.05), Trace_ELBO(num_particles=case.particles))

    def one(key: Any) -> Any:
        state = svi.init(key, *data)
        return jax.lax.fori_loop(0, case.steps, lambda _, now: svi.update(now, *data)[0], state).optim_state

    run = jax.jit(jax.vmap(one))
    keys = jax.random.split(jax.random.PRNGKey(0), case.replicas)
    return lambda: jax.block_until_ready(run(keys))


def seconds(run: Callable[[], Any], clock: Callable[[], float]) -> float:
    """How long a run takes by a clock."""
    began = clock()
    run()
    return clock() - began


def measure(case: Case, num_rounds: int) -> dict[str, Any]:
    """One case, in this process."""
    sides = {"ours": our_run} | ({"numpyro": numpyro_run} if installed("numpyro") else {})
    runs = {side: make(case) for side, make in sides.items()}
    first = {side: seconds(run, time.perf_counter) for side, run in runs.items()}
    rounds = [{side: seconds(run, time.process_time) for side, run in runs.items()} for _ in range(num_rounds)]
    warm = {side: [one[side] for one in rounds] for side in sides}
    return asdict(case) | {"first_seconds": first, "seconds": warm, "threads": 1}


def in_own_process(case: Case, num_rounds: int) -> dict[str, Any]:
    """The same in a new process on one core, which compiles as if it were the first; kept code is kept from before."""
    import multiprocessing

    with one_core(), multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (case, num_rounds))


def row(record: dict[str, Any]) -> list[str]:
    """The cells of a row."""
    sizes = f"{record['replicas']} x {record['particles']} x {record['steps']}"
    cells = [TITLES[record["model"]], f"{record['rows']:,}", sizes]
    ours, theirs = record["seconds"]["ours"], record["seconds"].get("numpyro")
    first = record["first_seconds"]
    if theirs is None:
        return [*cells, f"{first['ours']:.2g}", "not installed", f"{statistics.median(ours):.3g}", "not installed", "–"]
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    warm = [f"{statistics.median(times):.3g}" for times in (ours, theirs)]
    return [*cells, f"{first['ours']:.2g}", f"{first['numpyro']:.2g}", *warm, f"{ratio:.2g}"]


def program(arguments: argparse.Namespace) -> int:
    """Measures, shows, writes."""
    from rich import box
    from rich.table import Table

    from ppl_vi.report import files, table
    from ppl_vi.runtime.provenance import versions

    cli.writable_folder("--out", arguments.out)
    shown = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for place, heading in enumerate(HEADINGS):
        shown.add_column(heading, justify="right" if place else "left")
    records = []
    for case in CASES[:1] if arguments.quick else CASES:
        record = in_own_process(case, arguments.rounds)
        records.append(record | {"versions": versions("jax", "numpyro")})
        shown.add_row(*row(record))
    table.terminal().print(shown)
    write_output_text(arguments.out / "records.json", files.to_json(records))
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = cli.Parser(prog="speed_fit", description=(__doc__ or "").splitlines()[0])
    found.add_argument("--quick", action="store_true", help="the first case alone")
    found.add_argument("--rounds", type=cli.whole(1), default=5, metavar="N", help="runs of each side (5)")
    cli.add_out(found, OUT)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns the exit code."""
    return cli.run(program, parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
