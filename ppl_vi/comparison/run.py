"""Runs a comparison: fits and scores family after family, in one process or shared among several.

What can't be compared, and what fails, becomes an entry with its reason, so that the other families go on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from ppl_vi.approximations.approximation import Approximation
from ppl_vi.approximations.matching import matched
from ppl_vi.comparison.comparison import Comparison, Entry, FitSettings, SomeComparison
from ppl_vi.comparison.curves import curves_of, curves_of_draws
from ppl_vi.comparison.records import blank_record, record, record_of_draws
from ppl_vi.comparison.same_family import signature_of, with_shared_members
from ppl_vi.guides import Family, RefusedFamilyError, find_family
from ppl_vi.guides.own import family_of
from ppl_vi.metrics.draws.scorecard import measured
from ppl_vi.metrics.scorecard import score
from ppl_vi.runtime.memory import MemoryBoundError, bounded, share, shortage
from ppl_vi.runtime.names import check_start
from ppl_vi.runtime.processes import shared
from ppl_vi.runtime.stages import listening, stage
from ppl_vi.svi.fit import NO_CONTINUOUS_LATENT, UnsuitableObjectiveError, fit
from ppl_vi.svi.learning import learned_target
from ppl_vi.svi.objectives import find_objective
from ppl_vi.svi.setup import Strategy
from ppl_vi.svi.validation import check_count, validate
from ppl_vi.target.target import Target


def compare_each(
    comparison: SomeComparison,
    guides: Sequence[str],
    *,
    num_workers: int = 1,
    with_curves: bool = False,
) -> Iterator[SomeComparison]:
    """Yields the comparison after each family, so that what is finished survives an interruption.

    The entries stand in the order of `guides`, whichever was finished first. Their numbers do not depend on how many
    processes share the work. A family whose process is killed from outside is fitted again at the end, with no other
    beside it; if its process is killed again, its entry says so.

    Args:
        comparison: a comparison without entries.
        guides: families by name, or by the label under which `comparison.families` has them.
        num_workers: how many processes share the families.
        with_curves: whether the entries are to have the curves that figures show.

    Raises:
        ValueError: no such family, or the settings don't fit together.
    """
    check_settings(comparison.settings)
    for guide in guides:
        if guide not in comparison.families:
            refusal(guide)
    done: dict[str, Entry] = {}
    _ = comparison.truth.modes  # computed here once, they are sent to every process with the comparison
    if with_curves:
        _ = comparison.z  # computed here once, it is sent to every process with the comparison
    processes = min(num_workers, len(guides))
    one = compare_one if processes == 1 else _to_be_sent
    max_bytes = share(comparison.settings.max_memory, processes)
    work = partial(one, comparison, with_curves=with_curves, max_bytes=max_bytes)
    killed = partial(_killed, comparison)
    with stage("comparison", "guide", len(guides)) as running:
        for entry in shared(work, guides, processes, killed):
            done[entry.guide] = entry
            running.at(len(done))
            yield replace(comparison, entries=with_shared_members([done[guide] for guide in guides if guide in done]))


def compare_one(comparison: Comparison, guide: str, with_curves: bool = False, max_bytes: float | None = None) -> Entry:
    """Fits and scores one family. A family that is refused or fails gives an entry without scores, with the reason.

    Args:
        comparison: what the family is compared on.
        guide: the family.
        with_curves: whether the entry is to have the curves that figures show.
        max_bytes: what this process may hold; None is what it holds and half of what is free.

    Raises:
        ValueError: no such family.
    """
    refused = "" if guide in comparison.families else refusal(guide)
    if refused:
        return _without_scores(comparison, guide, "skipped", refused)
    try:
        with one_thread(), listening(None, guide), bounded(max_bytes):
            return _scored(comparison, guide, with_curves)
    except (RefusedFamilyError, UnsuitableObjectiveError) as error:
        return _without_scores(comparison, guide, "skipped", str(error))
    except MemoryBoundError as error:
        return _without_scores(comparison, guide, "failed", str(error))
    except (Exception, SystemExit) as error:  # a guide may do anything; the other families go on
        first, *_ = str(error).strip().splitlines() or [""]
        reason = shortage(error) or f"{type(error).__name__}: {first}".removesuffix(": ")
        return _without_scores(comparison, guide, "failed", reason)


def _to_be_sent(comparison: Comparison, guide: str, with_curves: bool, max_bytes: float | None) -> Entry:
    """An entry that another process can receive: without the fits, whose guides can't be sent."""
    return replace(compare_one(comparison, guide, with_curves, max_bytes), card=None)


def _killed(comparison: Comparison, guide: str, how: str) -> Entry:
    return _without_scores(comparison, guide, "failed", f"{how}, also when it was tried again")


def refusal(guide: str) -> str:
    """Why one of Pyro's guides can't be compared; "" where it can.

    Raises:
        ValueError: no such family.
    """
    try:
        find_family(guide)
    except RefusedFamilyError as error:
        return str(error).removeprefix(f"{guide}: ")
    return ""


def check_settings(settings: FitSettings) -> None:
    """Refuses settings that are out of range or don't fit together, before anything is computed.

    Raises:
        TypeError: a number is none.
        ValueError: a value is out of range, the objective or the engine is unknown, or one does not allow another.
    """
    validate(_strategy(settings), settings.engine, settings.num_replicas)
    check_count("num_draws", settings.num_draws)
    check_start(settings.start)


def _strategy(settings: FitSettings) -> Strategy:
    return Strategy(
        find_objective(settings.objective),
        num_steps=settings.num_steps,
        num_particles=settings.num_particles,
        lr=settings.lr,
        seed=settings.seed,
        tolerance=settings.tolerance,
    )


def _without_scores(comparison: Comparison, guide: str, status: str, reason: str) -> Entry:
    """The entry of a family that was skipped or failed."""
    blank = [blank_record(comparison, guide, b) for b in range(comparison.target.num_problems)]
    return Entry(guide, tuple(record | {"status": status, "reason": reason} for record in blank))


def _scored(comparison: Comparison, guide: str, with_curves: bool) -> Entry:
    settings, given = comparison.settings, comparison.families.get(guide)
    if isinstance(given, Approximation):
        return _measured(comparison, guide, given, with_curves)
    if not comparison.target.dim:
        return _without_scores(comparison, guide, "skipped", NO_CONTINUOUS_LATENT)
    fitted = fit(
        comparison.target,
        _family(comparison, guide),
        objective=settings.objective,
        engine=settings.engine,
        num_steps=settings.num_steps,
        num_particles=settings.num_particles,
        num_replicas=settings.num_replicas,
        lr=settings.lr,
        tolerance=settings.tolerance,
        seed=settings.seed,
        allow_support_mismatch=True,
        modes=comparison.truth.modes,
        start=settings.start,
    )
    no_density = fitted.program.unsupported_density()
    if no_density:
        return _without_scores(comparison, guide, "skipped", no_density)
    card = score(fitted, comparison.truth, num_draws=settings.num_draws)
    records = tuple(record(comparison, guide, card, b) for b in range(comparison.target.num_problems))
    signature = signature_of(fitted)
    if not with_curves:
        return Entry(guide, records, card=card, signature=signature)
    with stage("curves for the figures"):
        curves = curves_of(card, comparison)
    return Entry(guide, records, curves, card, signature)


def _measured(comparison: Comparison, label: str, given: Approximation, with_curves: bool) -> Entry:
    """The entry of draws from elsewhere."""
    found = measured(comparison.truth, given, matched(comparison.target, given), comparison.settings.seed)
    curves = curves_of_draws(found, comparison) if with_curves else None
    return Entry(label, (record_of_draws(comparison, label, found),), curves, measured=found)


def learned_by_first(target: Target, families: Mapping[str, Any], settings: FitSettings) -> Target:
    """The target whose model has the parameters that the first of the families learns.

    Raises:
        ValueError: the first family can't be compared, or can't learn them; the message says why.
    """
    guide, meant = next(iter(families.items()))
    return learned_target(
        target,
        family_of(target, meant, as_it_is=settings.num_steps == 0),
        guide,
        _strategy(settings),
        settings.num_replicas,
        settings.engine,
    )


def _family(comparison: Comparison, guide: str) -> Family | str:
    """The family that is meant by a name or label: a name that `fit` knows, or a family made of what the user gave."""
    meant = comparison.families.get(guide, guide)
    if isinstance(meant, str) and ":" not in meant:
        find_family(meant)  # refuses an unknown name with the reason
        return meant
    return family_of(comparison.target, meant, as_it_is=comparison.settings.num_steps == 0)


@contextmanager
def one_thread() -> Iterator[None]:
    """Computes with one thread: the last digits of sums depend on the number of threads, and records must not."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
