"""TODO."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch

from ppl_vi.comparison.comparison import Comparison, Entry, FitSettings, Some
from ppl_vi.comparison.curves import curves_of
from ppl_vi.comparison.records import blank_record, record
from ppl_vi.guides import Family, RefusedFamilyError, find_family
from ppl_vi.guides.own import family_of
from ppl_vi.metrics.scorecard import score
from ppl_vi.runtime.processes import shared
from ppl_vi.svi.fit import UnsuitableObjectiveError, check_objective, fit
from ppl_vi.svi.objectives import find_objective


def compare_each(
    comparison: Some,
    guides: Sequence[str],
    *,
    num_workers: int = 1,
    with_curves: bool = False,
    started: Callable[[str], None] | None = None,
) -> Iterator[Some]:
    """Yields the comparison after each family, so that what is finished survives an interruption.

    The entries stand in the order of `guides`, whichever was finished first; their numbers do not depend on how many
    workers there are.

    Args:
        comparison: without entries.
        guides: families by name.
        num_workers: processes to share the families.
        with_curves: whether to take what figures need, too.
        started: called with each family's name when its turn comes.

    Raises:
        ValueError: no such family, or the settings don't fit together.
    """
    check_settings(comparison.settings)
    for guide in guides:
        if guide not in comparison.families:
            refusal(guide)
    done: dict[str, Entry] = {}

    def tasks() -> Iterator[str]:
        for guide in guides:
            if started:
                started(guide)
            yield guide

    if with_curves:
        _ = comparison.z  # found once, here, and sent along
    processes = min(num_workers, len(guides))
    work = partial(compare_one if processes == 1 else _without_fits, comparison, with_curves=with_curves)
    for entry in shared(work, tasks(), processes):
        done[entry.guide] = entry
        yield replace(comparison, entries=tuple(done[guide] for guide in guides if guide in done))


def compare_one(comparison: Comparison, guide: str, with_curves: bool = False) -> Entry:
    """Fits and scores one family; what can't be done, or goes wrong, becomes an entry with its reason.

    Raises:
        ValueError: no such family.
    """
    refused = "" if guide in comparison.families else refusal(guide)
    if refused:
        return _without_scores(comparison, guide, "skipped", refused)
    try:
        with one_thread():
            return _scored(comparison, guide, with_curves)
    except (RefusedFamilyError, UnsuitableObjectiveError) as error:
        return _without_scores(comparison, guide, "skipped", str(error))
    except Exception as error:  # a guide may do anything; the other families go on
        first, *_ = str(error).strip().splitlines() or [""]
        return _without_scores(comparison, guide, "failed", f"{type(error).__name__}: {first}".removesuffix(": "))


def _without_fits(comparison: Comparison, guide: str, with_curves: bool) -> Entry:
    return replace(compare_one(comparison, guide, with_curves), card=None)


def refusal(guide: str) -> str:
    """Why a guide of Pyro's can't be compared, or "".

    Raises:
        ValueError: no such family.
    """
    try:
        find_family(guide)
    except RefusedFamilyError as error:
        return str(error).removeprefix(f"{guide}: ")
    return ""


def check_settings(settings: FitSettings) -> None:
    """Checks what can be told before anything is computed.

    Raises:
        ValueError: the objective is unknown, or can't be had with this engine or this number of particles.
    """
    check_objective(find_objective(settings.objective), settings.engine, settings.num_particles)


def _without_scores(comparison: Comparison, guide: str, status: str, reason: str) -> Entry:
    blank = [blank_record(comparison, guide, b) for b in range(comparison.target.num_problems)]
    return Entry(guide, tuple(record | {"status": status, "reason": reason} for record in blank))


def _scored(comparison: Comparison, guide: str, with_curves: bool) -> Entry:
    settings = comparison.settings
    fitted = fit(
        comparison.target,
        _family(comparison, guide),
        objective=settings.objective,
        engine=settings.engine,
        max_memory=settings.max_memory,
        num_steps=settings.num_steps,
        num_particles=settings.num_particles,
        num_replicas=settings.num_replicas,
        lr=settings.lr,
        seed=settings.seed,
        allow_support_mismatch=True,
    )
    lacking = fitted.program.unsupported_density()
    if lacking:
        return _without_scores(comparison, guide, "skipped", lacking)
    card = score(fitted, comparison.truth, num_draws=settings.num_draws)
    records = tuple(record(comparison, guide, card, b) for b in range(comparison.target.num_problems))
    curves = curves_of(card, comparison) if with_curves else None
    return Entry(guide, records, curves, card if comparison.detailed else None)


def _family(comparison: Comparison, guide: str) -> Family | str:
    given = comparison.families.get(guide, guide)
    if isinstance(given, str) and ":" not in given:
        find_family(given)
        return given
    return family_of(comparison.target, given)


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums depend in their last digits on the number of threads, so there is always one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
