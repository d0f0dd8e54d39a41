"""What `ppl-vi` and the programs in `benchmarks/` share: options, checks, progress, output and Ctrl-C.

A program reads its arguments, checks all of them before it computes anything, shows a bar while it computes, writes its
records after each family that is finished, and prints tables and draws figures at the end. What the user asks for and
can't be done is one line (`UsageError`). Torch and Pyro are imported only once the arguments have been read, so that
`--help` and a bad number are answered at once.
"""

from __future__ import annotations

import argparse
import glob
import importlib.util
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ppl_vi.runtime import garbage, names, result_folder, signals
from ppl_vi.runtime.display import following
from ppl_vi.runtime.files import is_replaced, write_bytes
from ppl_vi.runtime.memory import MemoryBoundError, bounded, num_sharing, parsed
from ppl_vi.runtime.outputs import (
    UNWRITTEN,
    noting_failures,
    one_line,
    reason_of,
    tell_results,
    why_not_file,
    why_not_folder,
    write_output,
    write_output_text,
)
from ppl_vi.runtime.plain_text import encodable_output
from ppl_vi.runtime.processes import num_cores, shared, wake
from ppl_vi.runtime.stages import stage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ppl_vi.comparison.comparison import Comparison, FitSettings
    from ppl_vi.target.target import Target

DEVICES = ("cpu", "cuda")
CUDA_DRIVERS = ("/dev/nv*", "/dev/kfd", "/dev/dxg")  # one of these is there on Linux where torch can find a CUDA device
FULL: dict[str, Any] = {"num_steps": 1000, "num_particles": "auto", "num_replicas": 16, "num_draws": 10_000}
QUICK: dict[str, Any] = {"num_steps": 300, "num_particles": "auto", "num_replicas": 4, "num_draws": 2000}
# Pyro's point mass is among "all" families although it is refused: its row says why it has no numbers.
POINT_MASS = "AutoDelta"
# The most processes that share the families. Each holds torch and Pyro in memory, so more of them need more memory.
MAX_WORKERS = 2
# The ELBO beside the training bar is an exponential average over epochs; this is the weight of the average so far. With
# a larger one the figure lags behind, with a smaller one it jumps with the noise of each epoch.
SMOOTHING = 0.8
# Exit codes: 2 by convention for wrong arguments, and 3 where a truth is uncertified, so that what rests on it must not
# be relied on.
USAGE, UNCERTIFIED = 2, 3
SIGNALLED = 128  # exit codes from here on are those after a signal

T = TypeVar("T")
SomeComparison = TypeVar("SomeComparison", bound="Comparison")


class UsageError(Exception):
    """The user asked for what can't be done. The message is one line and says what to ask for instead."""


class Parser(argparse.ArgumentParser):
    """An argument parser that complains in one line, and that reads -1e3 and -inf as numbers instead of options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._negative_number_matcher = re.compile(r"^-(\d|\.\d|inf|nan)")

    def error(self, message: str) -> NoReturn:
        """Says what is wrong and exits with 2."""
        _, _, unknown = message.partition("unrecognized arguments: ")
        hint = names.meant(unknown.split()[0].partition("=")[0], self._options()) if unknown.startswith("--") else ""
        self.exit(USAGE, f"{self.prog}: error: {' '.join(message.split())}{hint}\n")

    def _options(self) -> list[str]:
        """The options of this parser and of its commands."""
        found = list(self._option_string_actions)
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                found += [name for parser in action.choices.values() for name in parser._option_string_actions]
        return found


def finite(text: str) -> float:
    """A finite number."""
    try:
        value = names.number(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be finite, got {text}")
    return value


def folder(text: str) -> Path:
    """A folder; an empty text, as of a variable that is not set, would be the current one."""
    if not text:
        raise argparse.ArgumentTypeError("expected a folder, got ''")
    return Path(text)


def positive(text: str) -> float:
    """A finite number above 0."""
    value = finite(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return value


def step_size(text: str) -> float:
    """The size of Adam's first step of a fit."""
    value = positive(text)
    if value > names.MAX_LR:
        raise argparse.ArgumentTypeError(f"must be at most {names.MAX_LR:g}, got {text}")
    return value


def whole(least: int) -> Callable[[str], int]:
    """A function that parses a whole number of at least `least`, for an option's `type`."""

    def parse(text: str) -> int:
        try:
            value = names.whole_number(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        if not least <= value < 2**31:
            raise argparse.ArgumentTypeError(f"must be at least {least} and below 2^31, got {text}")
        return value

    return parse


def engine(text: str) -> str:
    """The name of an engine."""
    try:
        names.check_engine(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def memory(text: str) -> float:
    """The bytes of an amount of memory, such as 500MB, 4GB or 4GiB."""
    try:
        return parsed(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def draws(text: str) -> int | Literal["auto"]:
    """The type of an argument that is a number of draws, or "auto"."""
    return "auto" if text == "auto" else whole(1)(text)


def add_comparison_options(
    parser: argparse.ArgumentParser,
    out: Path,
    quick_guides: Sequence[str],
    guides: Sequence[str] = ("all",),
    full: dict[str, Any] = FULL,
) -> None:
    """Adds the options of a program that compares guide families on one target.

    Args:
        parser: gets the options.
        out: the default folder of `--out`.
        quick_guides: the families that `--quick` compares.
        guides: the families that are compared by default.
        full: the default counts of steps, particles, replicas and draws, without `--quick`.
    """
    parser.set_defaults(full=full)

    def count(name: str, text: str, kind: Callable[[str], Any]) -> None:
        default = f"{full[name]}" if full[name] == QUICK[name] else f"{full[name]}, with --quick {QUICK[name]}"
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar="N", help=f"{text} ({default})")

    few = ", ".join(quick_guides)
    parser.add_argument(
        "--guides", nargs="+", metavar="NAME", help=f"families, or all ({', '.join(guides)}, with --quick {few})"
    )
    parser.add_argument("--list-guides", action="store_true", help="list the families and exit")
    parser.add_argument(
        "--objective", default="trace_elbo", metavar="NAME", help="trace_elbo, stl, renyi:0.5, iwae:8 …"
    )
    count("num_steps", "SVI steps at most, or 0 for guides as they are", whole(0))
    count("num_particles", "draws a step, or auto: few at first, more where their noise is what is left", draws)
    count("num_replicas", "independent fits of each problem", whole(1))
    parser.add_argument("--lr", type=step_size, default=0.2, metavar="F", help="Adam's first step size (0.2)")
    parser.add_argument(
        "--engine",
        type=engine,
        metavar="NAME",
        default="auto",
        help="steps as machine code (compiled), operation by operation (batched), by Pyro's SVI, one fit at a time "
        "(pyro), or the fastest of these (auto)",
    )
    add_memory(parser)
    parser.add_argument("--device", choices=DEVICES, default="cpu", help="where to compute (cpu)")
    add_run_options(parser, out, "few families, steps and replicas")


def add_run_options(parser: argparse.ArgumentParser, out: Path, quick: str) -> None:
    """Adds the options of every program that writes records and figures; `quick` says what `--quick` has less of."""
    add_seed(parser)
    parser.add_argument("--quick", action="store_true", help=f"a look in seconds: {quick}")
    add_out(parser, out)
    parser.add_argument("--json", metavar="FILE", help="the records here, too; - is standard output, and only them")
    parser.add_argument("--no-plots", action="store_true", help="write no figures")


def add_memory(parser: argparse.ArgumentParser) -> None:
    """Adds `--max-memory`."""
    text = "what all processes may hold together, such as 500MB, 4GB or 4GiB (half of what is free)"
    parser.add_argument("--max-memory", type=memory, metavar="SIZE", help=text)


def add_seed(parser: argparse.ArgumentParser) -> None:
    """Adds `--seed`."""
    parser.add_argument("--seed", type=whole(0), default=0, metavar="N", help="of initial values and noise (0)")


def add_out(parser: argparse.ArgumentParser, out: Path) -> None:
    """Adds `--out`."""
    text = f"folder for what is written ({out})"
    parser.add_argument("--out", type=folder, default=out, metavar="DIR", help=text, action=_Given)
    parser.set_defaults(out_is_given=False, whose=parser.prog, unlisted_is_own=True)


class _Given(argparse.Action):
    """Stores an option's value, and under `..._is_given` that the user named it."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        setattr(namespace, self.dest, values)
        setattr(namespace, f"{self.dest}_is_given", True)


def run(
    program: Callable[[argparse.Namespace], int], parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> int:
    """Parses the arguments and runs a program; returns its exit code.

    It is 2 for a usage error, 3 where a truth is uncertified, 130 after Ctrl-C, 143 after SIGTERM and 129 after SIGHUP.
    """
    with encodable_output():
        return _run(program, parser, parser.parse_args(argv))


def _run(
    program: Callable[[argparse.Namespace], int], parser: argparse.ArgumentParser, arguments: argparse.Namespace
) -> int:
    """Runs a program with its arguments; the exit code."""
    garbage.all_kept_at_exit()
    with signals.handled(parser.prog):
        try:
            with noting_failures() as failed, result_folder.collecting():
                try:
                    with signals.working():
                        code = program(arguments)
                except UsageError:  # as where no guide could be compared, which is known at the end
                    tell_results()
                    raise
                if sys.stdout is not None:
                    sys.stdout.flush()
                if code < SIGNALLED:
                    tell_results()
            return code or (UNWRITTEN if failed else 0)
        except (Exception, KeyboardInterrupt) as error:
            # a library may have made another error of a signal's exception
            if not isinstance(error, KeyboardInterrupt) and not signals.has_come():
                return _told(parser.prog, error)
        print(f"{parser.prog}: {signals.word()}, nothing was finished", file=sys.stderr)
        return signals.exit_code()


def _told(program: str, error: Exception) -> int:
    """Tells the user of an error in one line, if it is one that the user can mend; the exit code."""
    if isinstance(error, UsageError):
        print(one_line(f"{program}: error: {error}"), file=sys.stderr)
        return USAGE
    if isinstance(error, BrokenPipeError):  # whoever read the output has seen enough
        _silence(sys.stdout)
        return 0
    if isinstance(error, OSError):  # as where the tables go to a full disk
        what = f" '{error.filename}'" if error.filename else ""
        print(one_line(f"{program}: error: can't read or write{what}: {reason_of(error)}"), file=sys.stderr)
        _silence(sys.stdout)
        return UNWRITTEN
    raise error


def _silence(stream: Any) -> None:
    """Lets a stream that can't be written to lead nowhere, so that what it still holds is not tried again."""
    if stream is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def chosen_guides(given: Sequence[str] | None, default: Sequence[str] | None) -> list[str]:
    """The families that are asked for, each once: `given`, or where there are none `default`, or without that all.

    Raises:
        UsageError: no such family.
    """
    from ppl_vi.comparison.run import refusal
    from ppl_vi.guides import FAMILIES

    everything = (*FAMILIES, POINT_MASS)
    asked = everything if given is None and default is None else given or default or ()
    guides = list(dict.fromkeys(guide for name in asked for guide in (everything if name == "all" else (name,))))
    try:
        for guide in guides:
            refusal(guide)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return guides


def guides_among(asked: Sequence[str], known: Iterable[str]) -> list[str]:
    """The families that are asked for, each once.

    Raises:
        UsageError: one of them is not among those known.
    """
    known = list(known)
    for name in asked:
        if name not in known:
            raise UsageError(f"{names.unknown(name, known)} (there are {', '.join(known)})")
    return list(dict.fromkeys(asked))


def list_guides(console: Console) -> None:
    """Prints each family with one line about it, then Pyro's guides that are refused, with the reason."""
    from ppl_vi.guides import FAMILIES, REFUSED, summary

    width = max(map(len, (*FAMILIES, *REFUSED)))
    lines = [f"{name:{width}}  {summary(name)}" for name in FAMILIES]
    lines += ["", "refused:", *(f"{name:{width}}  {reason}" for name, reason in REFUSED.items())]
    console.out("\n".join(lines), highlight=False)


def settings_of(arguments: argparse.Namespace) -> FitSettings:
    """How the families are to be fitted, as the options say.

    Raises:
        UsageError: the options don't fit together.
    """
    from ppl_vi.comparison.comparison import FitSettings
    from ppl_vi.comparison.run import check_settings

    counts = {
        name: value if getattr(arguments, name, None) is None else getattr(arguments, name)
        for name, value in (QUICK if arguments.quick else arguments.full).items()
    }
    settings = FitSettings(
        objective=arguments.objective,
        engine=arguments.engine,
        lr=arguments.lr,
        seed=arguments.seed,
        max_memory=arguments.max_memory,
        **counts,
    )
    try:
        check_settings(settings)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return settings


def check_device(device: str) -> None:
    """Refuses a device that is not there.

    Raises:
        UsageError: torch finds no such device.
    """
    if device == "cpu":
        return
    missing = "--device cuda: torch finds no CUDA device here"
    if sys.platform == "linux" and not any(map(glob.glob, CUDA_DRIVERS)):
        raise UsageError(missing)  # without the seconds that importing torch takes
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError(missing)


def writable_folder(option: str, folder: Path) -> None:
    """Creates a folder if it is missing, and tries to write to it.

    Raises:
        UsageError: the folder can't be created or written to.
    """
    if why := why_not_folder(folder):
        raise UsageError(f"{option}: {why}")


def check_outputs(arguments: argparse.Namespace) -> None:
    """Refuses outputs that could not be written, before anything is computed.

    Where the default folder holds another model's results, `arguments.out` becomes another folder, and one line says
    so once something is written. `arguments.whose` is the model that the results are of.

    Raises:
        UsageError: an output can't be written, or would replace another model's results.
    """
    _claim(arguments)
    writable_folder("--out", arguments.out)
    if arguments.json == "-" and sys.stdout is None:
        raise UsageError("--json: standard output is closed")
    if arguments.json is None or arguments.json == "-":
        return
    if why := why_not_file(Path(arguments.json)) if arguments.json else "expected a file, got ''":
        raise UsageError(f"--json: {why}")


def _claim(arguments: argparse.Namespace) -> None:
    """Chooses the folder for the results.

    Raises:
        UsageError: the user named a folder that holds another model's results.
    """
    try:
        arguments.out, said = result_folder.claimed(
            arguments.out,
            arguments.whose,
            given=arguments.out_is_given,
            unlisted_is_own=arguments.unlisted_is_own,
        )
    except result_folder.OtherResultsError as error:
        raise UsageError(f"--out: {error}") from error
    results = result_folder.current()
    results.folder, results.whose, results.why_here = arguments.out, arguments.whose, said


def check_comparison(arguments: argparse.Namespace) -> None:
    """Refuses what can be refused before torch and Pyro are imported, which takes seconds.

    Raises:
        UsageError: an option asks for what can't be done.
    """
    check_guides(arguments.guides)
    try:
        _, number = names.objective_of(arguments.objective)
    except ValueError as error:
        raise UsageError(str(error)) from error
    num = getattr(arguments, "num_particles", None)
    if arguments.objective.startswith("iwae:") and isinstance(num, int) and num % int(number or 1):
        raise UsageError(f"num_particles must be a multiple of K = {number} for iwae, got {num}")
    check_outputs(arguments)
    check_device(arguments.device)


def check_guides(given: Sequence[str] | None) -> None:
    """Refuses names of families of which there can be none.

    Raises:
        UsageError: there is none.
    """
    try:
        for name in given or ():
            if name != "all":
                _check_guide(name)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _check_guide(name: str) -> None:
    """Checks a family's name, or that there is such a module as a name of one's own begins with, and its file."""
    name, file = names.guide_and_file(name)
    names.check_family(name)
    if ":" not in name:
        return
    module, _, attribute = name.partition(":")
    package = module.partition(".")[0]
    if not package or not attribute:
        raise ValueError(f"guide '{name}': expected package.module:attribute")
    if package not in sys.modules and importlib.util.find_spec(package) is None:
        meant = names.with_colon(name)
        hint = f"; did you mean {meant}?" if meant else ""
        raise ValueError(f"guide '{name}' can't be imported: No module named '{package}'{hint}")
    if file and not Path(file).is_file():
        raise ValueError(f"guide '{name}': there is no file '{file}' with its values")


def woken(arguments: argparse.Namespace, default: Sequence[str] | None, modules: Sequence[str]) -> None:
    """Starts the processes that will share the families, as far as is known before anything is imported.

    They import the modules beside this process. Where `--max-memory` bounds what all may hold, `prepared` starts them
    once it is known how many there may be.
    """
    asked = arguments.guides or default
    several = asked is None or len(asked) > 1 or "all" in asked
    if several and arguments.max_memory is None:
        wake(num_workers(2, arguments.device), *modules)


def prepared(
    arguments: argparse.Namespace, default: Sequence[str] | None, modules: Sequence[str]
) -> tuple[list[str], FitSettings, int]:
    """What the options ask for, and the processes that will share the families, which it starts.

    Args:
        arguments: the options of `add_comparison_options`, which have passed `check_comparison`.
        default: the families to compare where `--guides` names none; None for all.
        modules: what each process is to import while this one computes the truth.

    Returns:
        The families, how they are fitted, and the number of processes.

    Raises:
        UsageError: an option asks for what can't be done.
    """
    guides = chosen_guides(arguments.guides, default)
    settings = settings_of(arguments)
    processes = num_workers_within(settings.max_memory, num_workers(len(guides), arguments.device))
    wake(processes, *modules)
    return guides, settings, processes


def compare_command(
    arguments: argparse.Namespace,
    make_target: Callable[[], Target],
    labels: Sequence[float],
    quick_guides: Sequence[str],
    more_figures: Callable[[Comparison], dict[str, Figure]],
) -> int:
    """Compares families on a target as the options ask, shows the tables and writes everything; the exit code.

    Args:
        arguments: the options of `add_comparison_options`.
        make_target: called once all arguments have been found good.
        labels: the number by which each of the target's problems goes.
        quick_guides: the families that `--quick` compares.
        more_figures: draws the program's own figures, by file name without ending.

    Raises:
        UsageError: the arguments ask for what can't be done.
    """
    if arguments.list_guides:
        list_guides(Console())
        return 0
    modules = ("ppl_vi.comparison.comparison", "ppl_vi.report.plots")
    default = quick_guides if arguments.quick else None
    check_comparison(arguments)
    with loading(), signals.starting(), garbage.imports_kept():
        woken(arguments, default, modules)
        guides, settings, processes = prepared(arguments, default, modules)
        from ppl_vi.comparison.comparison import Comparison
        from ppl_vi.truth import UncertifiedTruthError, ground_truth

    progress = on_terminal()
    try:
        with following(progress), bounded(settings.max_memory):
            target = make_target().to(arguments.device)
            comparison = Comparison(target, ground_truth(target), settings, tuple(labels))
    except (UncertifiedTruthError, MemoryBoundError) as error:
        raise UsageError(f"there is no truth to measure by: {error}") from error
    except ValueError as error:  # data where the model has no density
        raise UsageError(str(error)) from error
    code, _ = run_comparison(
        comparison,
        guides,
        processes,
        arguments,
        lambda done: write_figures(done, arguments, more_figures),
        "ppl_vi.report.plots",
        progress,
    )
    return code


@contextmanager
def loading() -> Iterator[None]:
    """Says in a terminal, before the first import that takes seconds, that the program has begun."""
    with following(on_terminal()), stage("loading Pyro and the model"):
        yield


def on_terminal() -> bool:
    """Whether standard error is a terminal."""
    return sys.stderr is not None and sys.stderr.isatty()


def run_comparison(
    comparison: SomeComparison,
    guides: Sequence[str],
    processes: int,
    arguments: argparse.Namespace,
    draw: Callable[[SomeComparison], None],
    figures: str,
    progress: bool,
) -> tuple[int, SomeComparison]:
    """Compares the guides, writes after each, shows the tables and draws; the exit code and what is finished.

    Args:
        comparison: has the truth.
        guides: the guides.
        processes: how many share the guides.
        arguments: the options of `add_comparison_options`.
        draw: draws the figures.
        figures: the module that draws them, which takes a while to import.
        progress: whether to show how far it has come.
    """
    from ppl_vi.comparison.run import compare_each

    with_curves = not arguments.no_plots
    with signals.saving(last=True):
        try:
            with signals.working(), following(progress):
                for comparison in compare_each(  # noqa: B020, each has one entry more
                    comparison, guides, num_workers=processes, with_curves=with_curves
                ):
                    write_comparison(comparison, arguments)
                    if with_curves:
                        importlib.import_module(figures)  # while other processes are at work
        except KeyboardInterrupt:
            done = len(comparison.entries)
            if done:
                write_comparison(comparison, arguments)  # the signal may have cut the last writing short
                show_comparison(comparison, arguments)
            return interrupted(done, len(guides), "families were finished", arguments), comparison
        show_comparison(comparison, arguments)
        code = drawn(lambda: _drawn_with_progress(draw, comparison, progress), arguments)
        return code or (0 if comparison.truth.trusted.all() else UNCERTIFIED), comparison


def _drawn_with_progress(draw: Callable[[SomeComparison], None], comparison: SomeComparison, progress: bool) -> None:
    with following(progress), stage("figures"):
        draw(comparison)


def num_workers(num_jobs: int, device: str) -> int:
    """How many processes share the jobs: at most one for each core, and one alone where there is one accelerator."""
    return min(num_cores(), MAX_WORKERS, num_jobs) if device == "cpu" else 1


def num_workers_within(max_bytes: float | None, most: int) -> int:
    """How many processes, at most `most`, have enough memory where all together may hold so many bytes.

    Raises:
        UsageError: this process holds more already.
    """
    try:
        with bounded(max_bytes):
            return num_sharing(max_bytes, most)
    except MemoryBoundError as error:
        raise UsageError(f"--max-memory: {error}") from error


@contextmanager
def _bar(name: str, total: int) -> Iterator[Callable[..., None]]:
    """A progress bar on standard error, if that is a terminal. It gives a function that updates the bar."""
    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    named = (TextColumn(name), *columns) if name else columns
    with Progress(*named, console=console, disable=not console.is_terminal, transient=True) as bar:
        yield partial(bar.update, bar.add_task("", total=total))


@contextmanager
def training_bar(name: str, num_epochs: int) -> Iterator[Callable[[int, int, float, float], None]]:
    """A bar on standard error, if that is a terminal, with the ELBO of a data point, averaged over the last epochs.

    It gives a function of the epoch, the number of epochs, and the ELBO on the training and on the held-out data.
    """
    with _bar(name, num_epochs) as update:
        average: list[float] = []

        def told(epoch: int, num_epochs: int, train: float, held_out: float) -> None:
            now = [train, held_out]
            average[:] = [SMOOTHING * old + (1 - SMOOTHING) * new for old, new in zip(average or now, now, strict=True)]
            text = f"ELBO a data point: train {average[0]:.2f}, held out {average[1]:.2f}"
            update(completed=epoch, description=text)

        yield told


def followed(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    """The same items, with a bar on standard error if that is a terminal."""
    with _bar(what, total) as update:
        for item in items:
            update(advance=1)
            yield item


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
    """Writes `table.txt`, which has all columns, and prints the table, for one problem with a verdict.

    That of problems which differ in one number has all columns, any other six unless `--full` is given.
    """
    from ppl_vi.report import table
    from ppl_vi.report.brief import brief
    from ppl_vi.report.verdict import verdict_on

    records, layout = comparison.records(), table.layout_of(comparison)
    verdict = verdict_on(comparison).text if comparison.target.num_problems == 1 and not comparison.labels else ""
    full = partial(table.show, layout=layout, verdict=verdict)
    write_output_text(arguments.out / "table.txt", table.as_text(records, full))
    is_full = bool(comparison.labels) or arguments.full_table
    show_records(records, arguments, full if is_full else partial(full, layout=brief(layout)))


def write_figures(
    comparison: Comparison, arguments: argparse.Namespace, more_figures: Callable[[Comparison], dict[str, Figure]]
) -> None:
    """Writes all figures as PNG; says on standard error which could not be drawn because a truth is missing."""
    from ppl_vi.report import plots

    jobs: list[Callable[[], dict[str, Figure]]] = [partial(more_figures, comparison)]
    for problem, label in enumerate(comparison.labels):
        for name, draw in plots.FIGURES.items():
            jobs.append(partial(_named, f"{name}_x_{label:g}", draw, comparison, problem))
    processes = num_workers(len(comparison.entries), arguments.device)
    for said, drawings in shared(_drawings, jobs, processes, _left_out):
        if said:
            print(said, file=sys.stderr)
        for name, content in drawings.items():
            write_output(arguments.out / f"{name}.png", partial(write_bytes, content=content))


def _named(
    name: str, draw: Callable[[Comparison, int], Figure], comparison: Comparison, problem: int
) -> dict[str, Figure]:
    return {name: draw(comparison, problem)}


def _left_out(_: Callable[[], dict[str, Figure]], how: str) -> tuple[str, dict[str, bytes]]:
    """What is said of figures whose process was killed."""
    return f"a figure is left out: {how}", {}


def _drawings(draw: Callable[[], dict[str, Figure]]) -> tuple[str, dict[str, bytes]]:
    """Why there are no figures, or "", and PNG files by name, which the process that is told writes."""
    from ppl_vi.report import files
    from ppl_vi.truth import UncertifiedTruthError

    try:
        return "", {name: files.to_png(figure) for name, figure in draw().items()}
    except UncertifiedTruthError as error:
        return f"a figure is left out: {error}", {}


def write_figure(path: Path, figure: Figure) -> None:
    """Writes a figure, as `ppl_vi.runtime.outputs.write_output` does."""
    from ppl_vi.report import files

    write_output(path, lambda place: files.write_figure(place, figure))


def interrupted(done: int, total: int, what: str, arguments: argparse.Namespace) -> int:
    """Says what was finished, and written, before a signal; the exit code."""
    where = f"; they are in {arguments.out}" if done else ""
    print(f"{signals.word()}: {done} of {total} {what}{where}", file=sys.stderr)
    return signals.exit_code()


def drawn(draw: Callable[[], None], arguments: argparse.Namespace) -> int:
    """Draws the figures, which is the last that a program does, unless `--no-plots` is given; the exit code."""
    if arguments.no_plots:
        return 0
    try:
        with signals.working():
            draw()
    except KeyboardInterrupt:
        print(f"{signals.word()}: not all figures were drawn; the tables are in {arguments.out}", file=sys.stderr)
        return signals.exit_code()
    return 0
