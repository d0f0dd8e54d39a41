"""Many families on one target: fitted, scored, and laid out as records."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ppl_vi.guides import Family, RefusedFamilyError, find_family
from ppl_vi.guides.own import family_of
from ppl_vi.metrics.estimate import Estimate
from ppl_vi.metrics.exact.divergence import reverse_kl_of_many
from ppl_vi.metrics.exact.grid import overlay
from ppl_vi.metrics.sampled.marginals import Line, Sample, guide_samples, number_names, pooled, posterior_of
from ppl_vi.metrics.sampled.noise_rules import cloud, drawn, rules, sobol_rules
from ppl_vi.metrics.scorecard import Scorecard, score
from ppl_vi.runtime.processes import shared
from ppl_vi.svi.fit import UnsuitableObjectiveError, check_objective, fit
from ppl_vi.svi.objectives import find_objective
from ppl_vi.svi.result import versions
from ppl_vi.target.inspection import LatentSite, ends
from ppl_vi.target.target import Target
from ppl_vi.truth import Truth

# keys of a record that are medians of a metric over replicas
SCORES = (
    "elbo", "elbo_gap", "reverse_kl", "forward_kl", "total_variation", "hellinger", "wasserstein", "mean_error",
    "sd_ratio", "coverage_90", "leaked_mass", "chi_square", "family_gap", "optimization_gap", "surrogate_elbo", "khat",
    "ess", "elbo_estimate", "importance_log_evidence", "importance_log_evidence_naive",
)  # fmt: skip
MORE_SCORES = ("relative_covariance_error", "khat_1000", "iwae_bound")  # of detailed comparisons
PER_REPLICA = ("elbo", "reverse_kl", "optimization_gap")
NUM_POINTS = 481  # of a curve over the latent
TAIL = 5e-4  # of the posterior's mass, beyond either end of the curves
LONGEST = 4.0  # times as far from the median as the 5% and 95% quantiles: no further, however heavy the tails
BEYOND = 0.2  # of that length, shown further out
SHOWN = (TAIL, 0.05, 0.5, 0.95, 1 - TAIL)
NUM_BINS = 50  # of the density of each of several numbers
WAY_POINTS, WAY_RULES = 1024, 2  # on which the way of several numbers is measured
DENSITY_POINTS = 2**13  # of each of 8 rules
NUM_FOLLOWED = 3  # replicas whose way is measured: the best, the middle and the worst one


@dataclass(frozen=True)
class Settings:
    """How every family of a comparison is fitted; see `ppl_vi.svi.fit.fit`."""

    objective: str = "trace_elbo"
    engine: str = "auto"
    num_steps: int = 1000
    num_particles: int = 256
    num_replicas: int = 16
    lr: float = 0.2
    seed: int = 0
    num_draws: int = 10_000
    max_memory: float | None = None


@dataclass(frozen=True, eq=False)
class Comparison:
    """Families on one target, as far as they are done.

    Attributes:
        target: the problems.
        truth: what they are measured by.
        settings: of the fits.
        labels: what a table calls each problem, for the toy its x; () where tables go by the target's name, and by the
            number of the problem where there are several, as a detailed comparison always does.
        entries: one a family.
        families: what is meant by the name of an entry, where the name alone does not say it.
        detailed: whether records also carry the model's name, the truth's grade and the scores of several latents, and
            entries the scored fits.
    """

    target: Target
    truth: Truth
    settings: Settings
    labels: tuple[float, ...]
    entries: tuple[Entry, ...] = ()
    families: dict[str, Any] = field(default_factory=dict)
    detailed: bool = False

    def records(self) -> list[dict[str, Any]]:
        """One record a (problem, family), in plain JSON values; infinite ones are the strings "inf" and "-inf"."""
        return [entry.records[b] for b in range(self.target.num_problems) for entry in self.entries]

    @cached_property
    def z(self) -> np.ndarray:
        """Where curves are taken: a one-dimensional latent's mass and a bit beyond, `(B, NUM_POINTS)`; the middles of
        bins, `(B, K, NUM_BINS)`, where there are several numbers."""
        if self.truth.line is None:
            edges = self.edges
            return (edges[..., 1:] + edges[..., :-1]) / 2
        limits = _limits(self.target.latents[0])[0]
        tails = _tails(self.truth.quantile(np.tile(SHOWN, (self.target.num_problems, 1))))
        low, high = np.maximum(tails[:, :1], limits[0]), np.minimum(tails[:, 1:], limits[1])
        return low + (high - low) * np.linspace(-BEYOND, 1 + BEYOND, NUM_POINTS)

    @cached_property
    def edges(self) -> np.ndarray:
        """Of the bins of several numbers, `(B, K, NUM_BINS + 1)`; none where the truth has no points."""
        if not self.truth.points:
            return np.empty((self.target.num_problems, 0, NUM_BINS + 1))
        grid = np.linspace(0, 1, NUM_BINS + 1)
        rows = []
        for b in range(self.target.num_problems):
            sample = posterior_of(self.truth, b).lines
            lines = [Line.of(sample, k) for k in range(sample.z.shape[1])]
            tails = _tails(np.array([line.quantile(np.array(SHOWN)) for line in lines]))
            edges = tails[:, :1] + (tails[:, 1:] - tails[:, :1]) * np.array([-BEYOND, 1 + BEYOND])
            limits = np.concatenate([_limits(site) for site in self.target.latents])
            low, high = np.clip(edges, limits[:, :1], limits[:, 1:]).T[..., None]
            rows.append(low + (high - low) * grid)
        return np.array(rows)

    def posterior(self, problem: int) -> np.ndarray:
        """The exact density at `z()` of one problem, 0 outside the support, `(K, Z)`."""
        if self.truth.line is None:
            return binned(posterior_of(self.truth, problem).lines, self.edges[problem])
        site, z = self.target.latents[0], self.z
        values = torch.from_numpy(z).to(self.target.device)
        log_density = self.truth.log_prob({site.name: values.reshape((*z.shape, *site.shape))})
        return torch.where(site.support.check(values), log_density.exp(), 0.0).cpu().numpy()[problem][None]


def _limits(site: LatentSite) -> np.ndarray:
    """Between which a site's numbers lie, as far as one can say of each, `(K, 2)`."""
    low, high = ends(site.support) or (torch.tensor(-torch.inf), torch.tensor(torch.inf))
    return torch.stack([end.expand(site.shape).flatten().double() for end in (low, high)], 1).cpu().numpy()


def _tails(quantiles: np.ndarray) -> np.ndarray:
    """Where curves begin and end, `(K, 2)`, from the quantiles of `SHOWN`, `(K, 5)`."""
    lowest, low, median, high, highest = quantiles.T
    begin = np.maximum(lowest, median - LONGEST * (median - low))
    end = np.minimum(highest, median + LONGEST * (high - median))
    return np.stack([begin, end], 1)


Some = TypeVar("Some", bound=Comparison)


@dataclass(frozen=True, eq=False)
class Curves:
    """What the figures show of a family: plain arrays.

    Attributes:
        z: latents, `(B, Z)`, or where there are several numbers `(B, K, Z)`.
        density: of the replica of median reverse KL at `z`, likewise.
        steps: SVI steps taken, `(T,)`; empty where a fit has no trajectory.
        reverse_kl: on the way there, exact, nats, `(B, F, T)`; the `F` replicas go from the best to the worst.
    """

    z: np.ndarray
    density: np.ndarray
    steps: np.ndarray
    reverse_kl: np.ndarray


@dataclass(frozen=True, eq=False)
class Entry:
    """One family of a comparison: plain values, so that it travels between processes.

    Attributes:
        guide: its name.
        records: one a problem.
        curves: for the figures; None where the family was skipped or failed, or where they weren't asked for.
        card: the scored fits, of a detailed comparison in one process: from another one they can't be sent.
    """

    guide: str
    records: tuple[dict[str, Any], ...]
    curves: Curves | None = None
    card: Scorecard | None = None


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


def check_settings(settings: Settings) -> None:
    """Checks what can be told before anything is computed.

    Raises:
        ValueError: the objective is unknown, or can't be had with this engine or this number of particles.
    """
    check_objective(find_objective(settings.objective), settings.engine, settings.num_particles)


def _without_scores(comparison: Comparison, guide: str, status: str, reason: str) -> Entry:
    blank = [_blank(comparison, guide, b) for b in range(comparison.target.num_problems)]
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


def curves_of(card: Scorecard, comparison: Comparison) -> Curves:
    """The curves of a scored fit where the comparison takes them."""
    fitted, z = card.fit, comparison.z
    steps, way = (np.empty(0, np.int64), np.empty((len(z), 0, 0)))
    if len(fitted.steps) and not fitted.support_mismatch:
        steps, way = fitted.steps, _way(card)
    middle = torch.tensor([middle_replica(card, b) for b in range(len(z))], device=fitted.theta.device)
    theta = torch.take_along_dim(fitted.theta, middle[:, None, None], 1)
    exact = card.truth.line is not None
    return Curves(z, _density(card, theta, z) if exact else _densities(card, theta, comparison.edges), steps, way)


def binned(sample: Sample, edges: np.ndarray) -> np.ndarray:
    """The mean density of each number over bins `(K, N + 1)`, `(K, N)`; nan of a number that is always the same."""
    lines = [Line.of(sample, k) for k in range(len(edges))]
    with np.errstate(invalid="ignore"):
        return np.array([np.diff(line.cdf(edge)) / np.diff(edge) for line, edge in zip(lines, edges, strict=True)])


def _densities(card: Scorecard, theta: Tensor, edges: np.ndarray) -> np.ndarray:
    """Of several numbers, from draws on Sobol points, `(B, K, NUM_BINS)`."""
    if not edges.shape[1]:
        return np.empty((len(edges), 0, NUM_BINS))
    fitted = card.fit
    seen = drawn(fitted, theta, sobol_rules(fitted.program.latent_draws, DENSITY_POINTS, fitted.seed + 50))
    return np.array([binned(pooled(guide_samples(seen, b, 0)), edge) for b, edge in enumerate(edges)])


def _density(card: Scorecard, theta: Tensor, z: np.ndarray) -> np.ndarray:
    fitted, site = card.fit, card.fit.target.latents[0]
    values = torch.from_numpy(z).to(theta)
    at = values.reshape((len(z), 1, -1, *site.shape))
    density = fitted.log_prob_at(theta, {site.name: at})[:, 0].exp()
    if not fitted.support_mismatch:  # outside its support a density's formula may give anything
        density = torch.where(site.support.check(values), density, 0.0)
    return density.cpu().numpy()


def _way(card: Scorecard) -> np.ndarray:
    """Reverse KL along the trajectory of the best, middle and worst replica, `(B, F, T)`."""
    fitted = card.fit
    order = np.argsort(card.scores["reverse_kl"].value, 1, kind="stable")
    at = np.unique(np.linspace(0, fitted.num_replicas - 1, NUM_FOLLOWED).round().astype(int))
    followed = torch.from_numpy(order[:, at]).to(fitted.trajectory.device)
    theta = torch.take_along_dim(fitted.trajectory, followed[None, :, :, None], 2).permute(1, 2, 0, 3)
    if card.truth.line is not None:
        return reverse_kl_of_many(overlay(fitted, card.truth, theta.flatten(1, 2))).reshape(theta.shape[:3])
    seen = cloud(
        fitted, theta.flatten(1, 2), rules(fitted.program.latent_draws, WAY_POINTS, fitted.seed + 60, WAY_RULES)
    )
    elbo = seen.rules.mean(seen.log_weight).mean(-1).cpu().numpy()
    return (card.truth.log_evidence[:, None] - elbo).reshape(theta.shape[:3])


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums depend in their last digits on the number of threads, so there is always one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _blank(comparison: Comparison, guide: str, problem: int) -> dict[str, Any]:
    """A record with all its keys and nothing measured."""
    truth, settings = comparison.truth, comparison.settings
    return {
        **_called(comparison, problem),
        "guide": guide,
        "status": "",
        "stop_reason": "",
        "log_evidence": _plain(truth.log_evidence[problem]),
        "log_evidence_error": _plain(truth.log_evidence_error[problem]),
        **dict.fromkeys((*SCORES, *MORE_SCORES) if comparison.detailed else SCORES),
        "num_steps": None,
        "seconds": None,
        "seed": settings.seed,
        "num_replicas": settings.num_replicas,
        "objective": settings.objective,
        "engine": settings.engine,
        "engine_reason": "",
        "versions": versions(),
        "reason": "",
        "reasons": {},
        "support_mismatch": None,
        "family_gap_is_upper_bound": None,
        "statuses": {},
        "replicas": [],
        **({"units": {}, "marginals": []} if comparison.detailed else {}),
    }


def _called(comparison: Comparison, problem: int) -> dict[str, Any]:
    """What a record says of its problem: its label, or the target's name, which of several, and the grade."""
    if comparison.labels and not comparison.detailed:
        return {"x": comparison.labels[problem]}
    num_problems = comparison.target.num_problems
    which = {"problem": problem, "num_problems": num_problems} if num_problems > 1 else {}
    return {"model": comparison.target.name, **which, **_graded(comparison.truth, problem)}


def _graded(truth: Truth, problem: int) -> dict[str, Any]:
    """How far the truth can be trusted."""
    return {
        "method": truth.method,
        "grade": truth.grade,
        "grade_reason": truth.reasons[problem] if truth.reasons else "",
        "assumptions": list(truth.assumptions),
        "log_evidence_std_error": _plain(truth.log_evidence_std_error[problem]),
    }


def record(comparison: Comparison, guide: str, card: Scorecard, problem: int) -> dict[str, Any]:
    """One (problem, family): medians over replicas, and each replica's main figures."""
    fitted, out = card.fit, _blank(comparison, guide, problem)
    out.update(
        status=_status(fitted.status[problem]),
        stop_reason=str(fitted.stop_reason[problem, middle_replica(card, problem)]),
        num_steps=int(fitted.num_steps[problem].max()),
        engine=fitted.engine,
        engine_reason=fitted.engine_reason,
        seconds=round(fitted.seconds, 3),
        reason=fitted.support_mismatch,
        support_mismatch=fitted.support_mismatch or None,
        family_gap_is_upper_bound=bool(card.best and card.best.upper_bound),
        statuses={str(s): int(n) for s, n in zip(*np.unique(fitted.status[problem], return_counts=True), strict=True)},
        replicas=[_replica(card, problem, r) for r in range(fitted.num_replicas)],
    )
    for name in (*SCORES, *MORE_SCORES):
        if name in card.scores and name in out:
            out.update(_score(name, card.scores[name], problem, out["reasons"]))
    if comparison.detailed:
        out["units"] = {name: estimate.unit for name, estimate in card.scores.items() if name in out}
        out["marginals"] = _marginals(card, problem)
    return out


def _marginals(card: Scorecard, problem: int) -> list[dict[str, Any]]:
    """What each latent number's marginal scores are, medians over replicas."""
    if card.marginals is not None:
        names, scores = card.marginals.names, card.marginals.scores
    elif card.truth.line is not None:
        names = number_names(card.fit.target)
        scores = {name: (card.scores[name],) for name in ("mean_error", "sd_ratio", "wasserstein", "coverage_90")}
    else:
        return []
    out = []
    for k, number in enumerate(names):
        each: dict[str, Any] = {"name": number}
        for name, estimates in scores.items():
            each.update(_score(name, estimates[k], problem, {}))
        out.append(each)
    return out


def _score(name: str, estimate: Estimate, problem: int, reasons: dict[str, str]) -> dict[str, Any]:
    """A metric's keys of a record; adds to `reasons` why a value is infinite or missing."""
    value = estimate.value[problem]
    if estimate.reason and not np.isfinite(value).all():
        reasons[name] = estimate.reason
    out = {name: _plain(_median(value)), f"{name}_error": _plain(np.max(estimate.error[problem]))}
    spread = estimate.std_error[problem]
    if np.any(spread > 0):
        out[f"{name}_std_error"] = _plain(_median(spread))
    return out


def _replica(card: Scorecard, problem: int, replica: int) -> dict[str, Any]:
    values = {
        name: _plain(card.scores[name].value[problem, replica]) if name in card.scores else None for name in PER_REPLICA
    }
    fitted = card.fit
    return values | {
        "status": str(fitted.status[problem, replica]),
        "stop_reason": str(fitted.stop_reason[problem, replica]),
    }


def _median(values: np.ndarray) -> float:
    """The median, of replicas some of which may be infinite: an element of the sorted values, or a mean of two."""
    ordered = np.sort(values)
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    return float(low if low == high else (low + high) / 2)


def middle_replica(card: Scorecard, problem: int) -> int:
    """The replica of median reverse KL."""
    order = np.argsort(card.scores["reverse_kl"].value[problem], kind="stable")
    return int(order[(len(order) - 1) // 2])


def _status(statuses: np.ndarray) -> str:
    """The status of most replicas, the worse one where they tie."""
    ranked = ("diverged", "not_converged", "converged")
    counts = [int((statuses == name).sum()) for name in ranked]
    return ranked[int(np.argmax(counts))]


def _plain(value: Any) -> float | str | None:
    number = float(value)
    if math.isnan(number):
        return None
    if math.isinf(number):
        return "inf" if number > 0 else "-inf"
    return number
