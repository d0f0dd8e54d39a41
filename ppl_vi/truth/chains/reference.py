"""Reference draws: the truth where quadrature does not reach, by many chains that must meet written criteria.

The criteria are posteriordb's, and stricter: 10,000 draws of chains from dispersed starts; split R-hat, effective sizes
in bulk and tails, and autocorrelation of every coordinate and of the log density; no divergence; the energy's fraction
of missing information; two estimates of log p(x), by bridge and by importance sampling, that agree.

Sources: Magnusson et al. (2024), posteriordb; Vehtari et al. (2021), Rank-normalization, folding, and localization: an
improved R-hat; Betancourt (2016), Diagnosing suboptimal cotangent disintegrations in Hamiltonian Monte Carlo; Gronau et
al. (2017), A tutorial on bridge sampling.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ppl_vi.numerics.mixtures import DEGREES, fit_student_mixture
from ppl_vi.numerics.weights import EvidenceEstimate, importance_evidence, pareto_khat
from ppl_vi.target.evaluation import prior_draws
from ppl_vi.target.target import Target
from ppl_vi.truth.chains.bridge import bridge
from ppl_vi.truth.chains.cache import SavedReference, kept
from ppl_vi.truth.chains.reparametrisation import Reparametrisation
from ppl_vi.truth.chains.sampler import ChainState, Trajectories, adapted, chains_at, settled
from ppl_vi.truth.result import Check, Points, Truth

R_HAT = 1.01
LEAST_SIZE = 5000  # effective draws
CORRELATION = 0.05  # of a draw with the next one of its chain
MISSING = 0.2  # E-FMI
AGREEMENT = 4.0  # standard errors between bridge and importance sampling
PRECISE = 0.05  # nats: the largest standard error of log p(x)
HEAVY = 0.7  # Pareto k-hat of the importance weights
ATTEMPTS = 6  # runs at half the step where trajectories diverged, or at twice the thinning where draws are correlated
PILOT_THINNING = 30  # the most that the pilot's draws tell of
LONGEST_THINNING = 60
UNNOTICED = 0.6 * CORRELATION  # in the pilot's draws
HOPELESS = 2  # times the longest thinning
CALL = 4  # leapfrog steps that take as long as all else in a transition
TIMES = (math.pi, 2 * math.pi)  # of the longest trajectory, whitened: half a round normal's period, and all of it
GIVEN_UP = "given up after a pilot, by whose correlations draws would have to be {} transitions apart"
FIRST_STEPS = 10  # leapfrog steps of a trajectory while chains look for their way
REACH = 2.0  # of the uniform starts in unconstrained space, as in Stan
FOUND = "the chains have found every part of the posterior: nothing else proves that no separate mode was missed"
SMOOTH = "the posterior's density{} is smooth enough for Hamiltonian trajectories (none diverged)"
RELATIVE = ", with {} in coordinates relative to their priors,"


@dataclass(frozen=True)
class ChainSettings:
    """How many chains and draws.

    Attributes:
        num_chains: each from its own start.
        num_draws: kept of each.
        num_warmup: transitions of each of the warm-up's windows.
        num_windows: before each of which coordinates and metric are set anew.
        acceptance: that the step aims at.
        num_proposed: draws of the proposals for log p(x).
    """

    num_chains: int = 100
    num_draws: int = 100
    num_warmup: int = 80
    num_windows: int = 5
    acceptance: float = 0.9
    num_proposed: int = 20_000


@dataclass(frozen=True, eq=False)
class ReferenceDraws:
    """What the chains of one problem gave.

    Attributes:
        coordinates: that the chains moved in.
        u: in these, `(N, C, D)`, draws by chains.
        value: log density in these, `(N, C)`, nats.
        slope: its gradient, `(N, C, D)`.
        energy: of every transition, thinned ones too, `(T, C)`.
        num_diverged: of them.
        given_up: why there are no better ones, or "".
    """

    coordinates: Reparametrisation
    u: Tensor
    value: Tensor
    slope: Tensor
    energy: Tensor
    num_diverged: int
    given_up: str = ""

    @cached_property
    def v(self) -> Tensor:
        """In the coordinates of `Target.constrain`, `(N, C, D)`."""
        return self.coordinates.outward(self.u.flatten(0, 1)).reshape(self.u.shape)

    @cached_property
    def numbers(self) -> Tensor:
        """Every coordinate of `Target.constrain` and the log density in these, `(N, C, D + 1)`."""
        value = self.coordinates.plain(self.v.flatten(0, 1)).reshape(self.value.shape)
        return torch.cat([self.v, value[..., None]], -1)


def reference_truth(target: Target, *, settings: ChainSettings | None = None, seed: int = 0) -> Truth:
    """Posterior draws of every problem, of any number of latents, with log p(x) and its standard error.

    They are kept in the user's cache folder, `ppl_vi/truths`: the same target, settings, seed and versions find them
    again.

    Args:
        target: any model.
        settings: how many.
        seed: of starts, chains and proposals.
    """
    chosen = settings or ChainSettings()
    with target.isolated(seed):
        coordinates = [Reparametrisation.of(target, problem) for problem in range(target.num_problems)]
        found = [_found(begun, chosen, seed) for begun in coordinates]
    reasons = tuple(one.reason for one in found)
    relative = [site.name for site in target.latents if any(site.name in begun.pulls for begun in coordinates)]
    u = torch.stack([one.u for one in found])
    group = torch.arange(chosen.num_chains).repeat_interleave(chosen.num_draws)
    points = Points(u, torch.full(u.shape[:2], -math.log(u.shape[1]), dtype=u.dtype), group, "draws")
    truth = Truth(
        target,
        "reference draws",
        np.array([one.log_evidence for one in found]),
        np.zeros(len(found)),
        tuple(max((one.checks[i] for one in found), key=_size) for i in range(len(found[0].checks))),
        reasons=reasons if any(reasons) else (),
        grade="uncertified" if any(reasons) else "checked",
        assumptions=(FOUND, SMOOTH.format(RELATIVE.format(", ".join(relative)) if relative else "")),
        log_evidence_std_error=np.array([one.std_error for one in found]),
        make_points=lambda: (points,),
    )
    return truth if target.closed_form is None else _with_closed_form(truth, target.closed_form(*target.args))


def _with_closed_form(truth: Truth, closed_form: Tensor) -> Truth:
    """With log p(x) in closed form, once bridge sampling has found the same."""
    exact = closed_form.detach().cpu().numpy()
    away = np.abs(exact - truth.log_evidence) / truth.log_evidence_std_error
    reasons = [
        reason or ("" if off <= AGREEMENT else f"bridge sampling is {off:.1f} standard errors from the closed form")
        for reason, off in zip(truth.reasons or [""] * len(exact), away, strict=True)
    ]
    check = Check("bridge sampling against the closed form, standard errors", float(away.max()), AGREEMENT)
    return replace(
        truth,
        log_evidence=exact,
        log_evidence_error=8 * np.finfo(np.float64).eps * (1 + np.abs(exact)),
        log_evidence_std_error=np.zeros_like(exact),
        checks=(*truth.checks, check),
        reasons=tuple(reasons) if any(reasons) else (),
        grade="uncertified" if any(reasons) else "certified",
    )


def _size(check: Check) -> float:
    return math.inf if math.isnan(check.error) else check.error


def _found(coordinates: Reparametrisation, settings: ChainSettings, seed: int) -> SavedReference:
    target, problem = coordinates.target, coordinates.problem

    def compute() -> SavedReference:
        prior = prior_draws(target, problem, settings.num_chains, seed)
        with torch.no_grad():
            return reference(coordinates, prior, settings, seed)

    return kept(target, coordinates.plain, problem, asdict(settings) | {"seed": seed}, compute)


def reference(coordinates: Reparametrisation, prior: Tensor, settings: ChainSettings, seed: int) -> SavedReference:
    """Draws from one density, with all that checks them.

    Args:
        coordinates: of one problem, where chains begin to move.
        prior: draws of the prior, where half of the chains start.
        settings: how many.
        seed: of everything.
    """
    generator = torch.Generator().manual_seed(seed)
    start = _dispersed(coordinates, prior, settings.num_chains, generator)
    draws = _sampled(coordinates, start, settings, generator)
    by_bridge, by_importance, heavy = _evidence(draws, settings.num_proposed, seed)
    joint_error = math.hypot(by_bridge.std_error, by_importance.std_error)
    checks = (
        *_diagnosed(draws),
        Check("bridge against importance sampling, standard errors", _ratio(by_bridge, by_importance), AGREEMENT),
        Check("standard error of the two log evidences together, nats", joint_error, PRECISE),
        Check("Pareto k-hat of the importance weights", heavy, HEAVY),
    )
    failed = [f"{c.name}: {c.error:.3g}, allowed {c.tolerance:g}" for c in checks if not c.error <= c.tolerance]
    reason = "; ".join([draws.given_up, *failed] if draws.given_up else failed)
    return SavedReference(draws.v.transpose(0, 1).flatten(0, 1), by_bridge.value, by_bridge.std_error, checks, reason)


def _ratio(one: EvidenceEstimate, other: EvidenceEstimate) -> float:
    return abs(one.value - other.value) / math.hypot(one.std_error, other.std_error)


def _dispersed(coordinates: Reparametrisation, prior: Tensor, num: int, generator: torch.Generator) -> Tensor:
    """Half of the chains anywhere within 2 of 0, as Stan's start, and half where the prior's draws are, `(C, D)`."""
    density, prior = coordinates.density, coordinates.inward(prior)
    anywhere = REACH * (2 * torch.rand(20 * num, density.dim, generator=generator, dtype=prior.dtype) - 1)
    drawn = prior[density(prior).isfinite()][: num // 2]
    start = torch.cat([drawn, anywhere[density(anywhere).isfinite()]])[:num]
    if len(start) < num:
        raise ValueError(f"the log joint of '{density.name}' is finite at only {len(start)} of {21 * num} starts")
    return start


def _sampled(
    coordinates: Reparametrisation, start: Tensor, settings: ChainSettings, generator: torch.Generator
) -> ReferenceDraws:
    coordinates, state, kernel = _warmed_up(coordinates, start, settings, generator)
    kernel, thinning, pilot, state = _piloted(coordinates, state, kernel, settings.num_draws, generator)
    if thinning > HOPELESS * LONGEST_THINNING:
        return replace(pilot, given_up=GIVEN_UP.format(f"{thinning:.3g}"))
    thinning = min(math.ceil(thinning), LONGEST_THINNING)
    for _ in range(ATTEMPTS):
        draws, state = _run(coordinates, state, kernel, settings.num_draws, thinning, generator)
        correlation, longest = float(autocorrelation(draws.numbers, 1).abs().max()), thinning == LONGEST_THINNING
        correlated = correlation > CORRELATION
        if not draws.num_diverged and (longest or not correlated):
            break
        # correlations over k times as many transitions are no less than their k-th power
        if correlation ** (LONGEST_THINNING / thinning) > 2 * CORRELATION:
            break
        kernel = replace(kernel, step=kernel.step / 2) if draws.num_diverged else kernel
        thinning = min(2 * thinning, LONGEST_THINNING) if correlated else thinning
    return draws


def _warmed_up(
    coordinates: Reparametrisation, start: Tensor, settings: ChainSettings, generator: torch.Generator
) -> tuple[Reparametrisation, ChainState, Trajectories]:
    """Coordinates, metric and step from where chains have been, set anew after each window."""
    kernel = Trajectories(torch.tensor(0.1), TIMES[0], torch.eye(start.shape[1], dtype=start.dtype))
    num, goal = settings.num_warmup, settings.acceptance
    state = chains_at(coordinates.density, start)
    first = replace(kernel, most=FIRST_STEPS)
    states, kernel = settled(coordinates.density, state, first, 2 * num, goal, generator)
    for _ in range(settings.num_windows):
        seen = states[-num // 2 :]
        u, slope = torch.cat([state.u for state in seen]), torch.cat([state.slope for state in seen])
        again = coordinates.fitted(u, slope)
        moved = again.inward(coordinates.outward(u))
        if bool(moved.isfinite().all()):  # else a point lies where the new ones overflow
            coordinates, u = again, moved
        kernel = Trajectories(kernel.step.clamp(max=0.3), TIMES[0], _factor(u))
        state = chains_at(coordinates.density, u[-len(start) :])
        states, kernel = settled(coordinates.density, state, kernel, num, goal, generator)
    states, kernel = adapted(coordinates.density, states[-1], kernel, num, goal, generator)
    return coordinates, states[-1], kernel


def _piloted(
    coordinates: Reparametrisation, state: ChainState, kernel: Trajectories, num: int, generator: torch.Generator
) -> tuple[Trajectories, float, ReferenceDraws, ChainState]:
    """The length of trajectories at which a draw costs least, the transitions from one to the next, and the pilot."""
    found = []
    for time in TIMES:
        tried = replace(kernel, time=time)
        pilot, state = _run(coordinates, state, tried, num, 1, generator)
        thinning = _thinning(torch.cat([pilot.v, pilot.v.square(), pilot.numbers[..., -1:]], -1))
        found.append((thinning * (CALL + time / 2 / float(kernel.step)), thinning, tried, pilot))
    _, thinning, kernel, pilot = min(found, key=lambda one: one[0])
    return replace(kernel, step=kernel.step / 2) if pilot.num_diverged else kernel, thinning, pilot, state


def _factor(u: Tensor) -> Tensor:
    """The Cholesky factor of draws' covariance, drawn a little towards its diagonal."""
    covariance = torch.cov(u.T).reshape(u.shape[1], u.shape[1])
    shrunk = 0.95 * covariance + 0.05 * torch.diag(torch.diagonal(covariance))
    factor, failed = torch.linalg.cholesky_ex(shrunk)
    return torch.diag(torch.diagonal(covariance).clamp(min=1e-12).sqrt()) if bool(failed) else factor


def _run(
    coordinates: Reparametrisation,
    state: ChainState,
    kernel: Trajectories,
    num: int,
    thinning: int,
    generator: torch.Generator,
) -> tuple[ReferenceDraws, ChainState]:
    """`num` draws of each chain, `thinning` transitions apart."""
    states, energy, diverged = [], [], 0
    for step in range(num * thinning):
        moved = kernel.transition(coordinates.density, state, generator)
        state = moved.state
        energy.append(moved.energy)
        diverged += int(moved.diverged.sum())
        if (step + 1) % thinning == 0:
            states.append(state)
    u, value, slope = (torch.stack(parts) for parts in zip(*((s.u, s.value, s.slope) for s in states), strict=True))
    return ReferenceDraws(coordinates, u, value, slope, torch.stack(energy), diverged), state


def autocorrelation(values: Tensor, lag: int) -> Tensor:
    """Of draws `(N, C, K)` with those `lag` later, all chains about their common mean, `(K,)`."""
    away = values - values.mean((0, 1))
    return (away[lag:] * away[:-lag]).mean((0, 1)) / away.square().mean((0, 1))


def _thinning(values: Tensor) -> float:
    """The least lag at which no number is correlated with itself, as far as these draws tell; beyond
    `PILOT_THINNING` that at which correlations would have died away that fall on as they fell until there."""
    for lag in range(1, min(PILOT_THINNING + 1, len(values))):
        correlated = float(autocorrelation(values, lag).max())
        if correlated < UNNOTICED:
            return lag
    return lag * math.log(UNNOTICED) / math.log(correlated) if correlated < 1 else math.inf


def _diagnosed(draws: ReferenceDraws) -> tuple[Check, ...]:
    """The criteria that the chains themselves can fail."""
    from arviz_stats.base import array_stats  # takes two seconds, with xarray and pandas

    chains = draws.numbers.permute(2, 1, 0).cpu().numpy()  # number, chain, draw
    r_hat = max(float(array_stats.rhat(one)) for one in chains)
    bulk = min(float(array_stats.ess(one, method="bulk")) for one in chains)
    tail = min(float(array_stats.ess(one, method="tail", prob=(0.05, 0.95))) for one in chains)
    missing = np.asarray(array_stats.bfmi(draws.energy.T.cpu().numpy())).min()
    return (
        Check("split R-hat", r_hat, R_HAT),
        Check(f"{LEAST_SIZE} over the effective size in bulk", LEAST_SIZE / bulk, 1.0),
        Check(f"{LEAST_SIZE} over the effective size in the tails", LEAST_SIZE / tail, 1.0),
        Check("correlation of a draw with the next", float(autocorrelation(draws.numbers, 1).abs().max()), CORRELATION),
        Check("diverged trajectories", float(draws.num_diverged), 0.0),
        Check(f"{MISSING} over the least E-FMI of any chain", MISSING / float(missing), 1.0),
    )


def _evidence(draws: ReferenceDraws, num: int, seed: int) -> tuple[EvidenceEstimate, EvidenceEstimate, float]:
    """By bridge and by importance sampling, each with a density fitted to the other half of the chains, and k-hat."""
    density, half = draws.coordinates.density, draws.u.shape[1] // 2
    first, second = draws.u[:, :half], draws.u[:, half:]
    generator = torch.Generator().manual_seed(seed + 1)
    normal = fit_student_mixture(first.flatten(0, 1), math.inf, seed)
    proposed = normal.draw(num, generator)
    log_q = normal.log_prob(second.flatten(0, 1)).reshape(second.shape[:2])
    by_bridge = bridge(
        draws.value[:, half:].T.numpy(),
        log_q.T.numpy(),
        density(proposed).numpy(),
        normal.log_prob(proposed).numpy(),
    )
    student = fit_student_mixture(second.flatten(0, 1), DEGREES, seed)
    proposed = student.draw(num, generator)
    log_weight = (density(proposed) - student.log_prob(proposed)).numpy()
    return by_bridge, importance_evidence(log_weight), pareto_khat(log_weight)
