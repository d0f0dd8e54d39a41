"""The guides and settings that the options ask for."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from ppl_vi.cli.options import QUICK
from ppl_vi.cli.parsing import UsageError
from ppl_vi.cli.workers import num_workers, num_workers_within
from ppl_vi.runtime import names
from ppl_vi.runtime.processes import wake

if TYPE_CHECKING:
    from ppl_vi.comparison.comparison import FitSettings

# Pyro's point mass is among "all" families although it is refused: its row says why it has no numbers.
POINT_MASS = "AutoDelta"


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
        start=arguments.start,
        **counts,
    )
    try:
        check_settings(settings)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return settings


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
