"""The commands `ppl-vi sweep` and `ppl-vi results`: their options, and what they print."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppl_vi import cli
from ppl_vi.runtime import names, signals
from ppl_vi.runtime.display import following
from ppl_vi.runtime.memory import num_sharing
from ppl_vi.runtime.outputs import one_line, write_output_text
from ppl_vi.runtime.processes import num_cores, wake
from ppl_vi.runtime.stages import stage
from ppl_vi.sweeps.checks import StoreError
from ppl_vi.sweeps.cluster import ClusterError, cluster_of, reach
from ppl_vi.sweeps.show import add_results, clock
from ppl_vi.sweeps.store import Store

if TYPE_CHECKING:
    from ppl_vi.sweeps.plan import Plan
    from ppl_vi.sweeps.running import Work

FILE = Path("sweep.db")
EXAMPLES = """examples, for a file my_model.py in the current folder that has `model` and `data`:
  ppl-vi sweep plan.toml
  ppl-vi sweep my_model:model --args my_model:data --guides AutoNormal gamma --lr 0.05 0.2 --seed 0:100 --dry-run
  ppl-vi sweep my_model:model --args my_model:data --guides AutoNormal gamma --lr 0.05 0.2 --seed 0:100"""
AXES = ("objective", "lr", "num_steps", "num_particles", "seed")


def add(commands: Any) -> None:
    """Adds the two commands to those of a parser."""
    _add_sweep(commands)
    add_results(commands)


def _add_sweep(commands: Any) -> None:
    text = "many fits: models, guides, settings and seeds, in one file that survives whatever ends the program"
    parser = cli.add_command(commands, "sweep", text, EXAMPLES)
    parser.add_argument("what", nargs="*", metavar="PLAN.toml | MODULE:MODEL", help="a plan, or models or targets")
    parser.add_argument("--args", metavar="MODULE:DATA", help="the model's positional arguments: one value, or a tuple")
    parser.add_argument("--guides", nargs="+", metavar="NAME", help="families, or guides as module:attribute")
    parser.add_argument("--objective", nargs="+", metavar="NAME", help="trace_elbo, stl, renyi:0.5, iwae:8 …")
    parser.add_argument("--lr", nargs="+", type=cli.step_size, metavar="F", help="Adam's first step sizes (0.2)")
    parser.add_argument("--num-steps", nargs="+", type=cli.whole(1), metavar="N", help="SVI steps at most (1000)")
    parser.add_argument("--num-particles", nargs="+", type=cli.draws, metavar="N", help="draws a step, or auto (auto)")
    parser.add_argument("--seed", nargs="+", type=_seed, metavar="N", help="seeds, as numbers or as 0:100 (0:4)")
    parser.add_argument("--num-draws", type=cli.whole(2), metavar="N", help="draws for importance sampling (1000)")
    parser.add_argument("--engine", choices=names.ENGINES, help="what takes the steps (auto)")
    parser.add_argument(
        "--block", type=cli.whole(1), metavar="N", help="seeds that are fitted as one batch (0 to 3, 4 to 9, tens)"
    )
    parser.add_argument(
        "--exclude", nargs="+", type=_exclusion, metavar="NAME=VALUE,…", help="combinations that are left out"
    )
    parser.add_argument("--file", type=Path, help=f"the results (the plan's name with .db, else {FILE})")
    parser.add_argument("--workers", type=cli.whole(1), metavar="N", help="processes that share the work (one a core)")
    where = "where Dask workers do the fits instead: tcp://HOST:PORT, or a TOML file that names a deployer"
    parser.add_argument("--cluster", metavar="WHERE", help=where)
    parser.add_argument("--retry", action="store_true", help="do again what failed or was killed before")
    parser.add_argument("--html", action="store_true", help="write one page with everything, beside the results")
    parser.add_argument("--dry-run", action="store_true", help="say how many fits there are and how long they take")
    parser.set_defaults(program=sweep_program)


def _seed(text: str) -> int | str:
    return text if ":" in text else cli.whole(0)(text)


def _exclusion(text: str) -> dict[str, Any]:
    parts = [part.partition("=") for part in text.split(",")]
    if any(not (name and equals and value) for name, equals, value in parts):
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE,NAME=VALUE such as guide=gamma,lr=0.5, got '{text}'")
    return {name: _read(value) for name, _, value in parts}


def _read(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def sweep_program(arguments: argparse.Namespace) -> int:
    """Runs what is missing of a plan, or says how much that is; the exit code."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        with _store_errors():
            workers, cluster = _workers_and_cluster(arguments)
            wake(1 if arguments.dry_run else workers, "ppl_vi.sweeps.tasks")
            planned = _planned(arguments)
            if planned is None:
                return cli.USAGE
            if arguments.dry_run:
                return _told(*planned, workers)
            return _swept(*planned, workers, cluster, arguments)
    finally:
        if folder in sys.path:  # which a module may have changed
            sys.path.remove(folder)


def _workers_and_cluster(arguments: argparse.Namespace) -> tuple[int, Any]:
    """How many processes of this machine share the work, and the cluster that does it instead, or None."""
    if arguments.cluster is None:
        return arguments.workers or num_sharing(None, num_cores()), None
    if arguments.workers:
        raise cli.UsageError("expected --workers or --cluster, got both: a cluster has the workers that it has")
    cluster = cluster_of(arguments.cluster)
    if isinstance(cluster, str):
        reach(cluster)
    return 1, cluster


@contextmanager
def _store_errors() -> Iterator[None]:
    """Tells of a file or a cluster that can't be used in one line."""
    try:
        yield
    except (StoreError, ClusterError) as error:
        raise cli.UsageError(str(error)) from error


def _planned(arguments: argparse.Namespace) -> tuple[Plan, Path] | None:
    """The plan and the file of its results; None where it is wrong, of which every line is told."""
    with signals.starting(), following(True), stage("loading Pyro and the models"):
        from ppl_vi.sweeps.files import plan_from_file
        from ppl_vi.sweeps.options import PlanError
        from ppl_vi.sweeps.plan import plan_of

        given = {
            name: value
            for name in ("guides", *AXES, "num_draws", "engine", "block", "exclude")
            if (value := getattr(arguments, name)) is not None
        }
        what: Sequence[Any] = arguments.what  # texts from the command line, entries of a plan from `--store`
        try:
            if len(what) == 1 and str(what[0]).endswith(".toml"):
                found = plan_from_file(Path(what[0]), given)
                return found.plan, arguments.file or found.file or Path(what[0]).with_suffix(".db")
            args = {"args": arguments.args} if arguments.args else {}
            models = [{"model": one, **args} if isinstance(one, str) else one for one in what]
            return plan_of({"models": models, **given}, _option), arguments.file or FILE
        except PlanError as error:
            lines = error.lines
    for line in lines:
        print(one_line(f"ppl-vi: error: {line}"), file=sys.stderr)
    return None


def _option(place: Any) -> str:
    """What an entry is called on the command line."""
    return str(place) if place.name == "models" else f"--{place}".replace("_", "-")


def _told(plan: Plan, file: Path, workers: int) -> int:
    """Prints how many fits are missing, and how long they will take."""
    from ppl_vi.sweeps.estimate import estimate
    from ppl_vi.sweeps.keys import all_versions
    from ppl_vi.sweeps.results import stored_seeds
    from ppl_vi.sweeps.tasks import tasks_of

    stored = stored_seeds(file)
    tasks = tasks_of(plan, all_versions())
    missing = [task for task in tasks if not set(task.seeds) <= set(stored.get(task.key, ()))]
    num_missing = sum(task.num_problems * len(set(task.seeds) - set(stored.get(task.key, ()))) for task in missing)
    combinations = f"{len(plan.settings):,} combinations x {len(plan.seeds):,} seeds"
    print(f"{plan.num_fits:,} fits in {len(tasks):,} tasks ({combinations})")
    print(f"{plan.num_fits - num_missing:,} fits are in {file}, {num_missing:,} are missing in {len(missing):,} tasks")
    if missing:
        with following(True):
            found = estimate(plan, missing, file)
        processes = min(workers, len(missing))
        several = f"{processes} processes" if processes > 1 else "one process"
        print(f"about {clock(found.seconds / processes)} in {several}, {found.basis}")
    return 0


def _swept(plan: Plan, file: Path, workers: int, cluster: Any, arguments: argparse.Namespace) -> int:
    from ppl_vi.sweeps.running import Work, run
    from ppl_vi.sweeps.tasks import SourceChangedError, score_columns

    work: Work | None = None
    with signals.saving(last=True):
        try:
            with signals.working(), Store(file, score_columns()) as store, following(True):
                work = Work.of(plan, store, arguments.retry)
                if work.num_damaged:
                    print(f"{file}: {work.num_damaged:,} damaged tasks are computed again", file=sys.stderr)
                for _ in run(work, workers, cluster):
                    pass
        except SourceChangedError as error:
            raise cli.UsageError(str(error)) from error
        except KeyboardInterrupt:
            print(
                f"{signals.word()}: {_finished(work)} fits were finished; they are in {file}, and the same "
                "command goes on from there",
                file=sys.stderr,
            )
            return signals.exit_code()
        _show_totals(plan, file, sum(work.finished))
        if arguments.html:
            _write_page(file)
        return 0


def _write_page(file: Path) -> None:
    from ppl_vi.page.render import html_of
    from ppl_vi.sweeps.page import page_of

    write_output_text(file.with_suffix(".html"), html_of(page_of(file)))
    print(f"{file.with_suffix('.html')} has a page of them")


def _finished(work: Work | None) -> str:
    """How many fits are stored, and of how many."""
    return f"{sum(work.finished):,} of {work.num_missing:,}" if work else "0"


def _show_totals(plan: Plan, file: Path, done: int) -> None:
    from ppl_vi.sweeps.results import num_stale, totals

    statuses = ", ".join(f"{number:,} {status}" for status, number in totals(file).items())
    print(f"{plan.num_fits:,} fits are in {file}, {done:,} of them new; in the file: {statuses}")
    if stale := num_stale(file):
        print(f"{stale:,} more are stale: of an earlier model, guide or version; --stale shows them")
    print(f"ppl-vi results {file} shows them")
