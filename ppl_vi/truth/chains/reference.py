"""Reference draws: the truth where quadrature does not reach, by draws that must meet written criteria.

Where independent draws by importance sampling meet theirs (`ppl_vi.truth.importance`), they are taken, because they
cost a hundredth. Everywhere else many chains are run.

The chains run Hamiltonian Monte Carlo in coordinates that are adapted to hierarchies (`reparametrisation`). A warm-up
sets coordinates, inverse mass matrix and step size; a pilot run chooses the length of trajectories and how many
transitions apart the draws are kept; then the draws are taken. A proposal density fitted to half of the chains gives
log p(x) by bridge sampling on the other half.

The criteria are posteriordb's, and stricter: 10,000 draws of chains from dispersed starts; split R-hat, effective
sample sizes in bulk and tails, and correlation of neighbouring draws, each for every coordinate and for the log
density; no divergent transition; the energy's fraction of missing information (E-FMI); and two estimates of log p(x),
by bridge sampling and by importance sampling, that agree.

Sources: Magnusson et al. (2024), posteriordb; Gronau et al. (2017), A tutorial on bridge sampling.
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
from ppl_vi.runtime.stages import Running, stage
from ppl_vi.target.evaluation import prior_draws
from ppl_vi.target.target import Target
from ppl_vi.truth.chains.bridge import bridge
from ppl_vi.truth.chains.cache import SavedReference, cached_reference
from ppl_vi.truth.chains.criteria import (
    MAX_CORRELATION,
    MAX_LOG_EVIDENCE_ERROR,
    MAX_PARETO_K_HAT,
    MAX_STANDARD_ERRORS,
    Criterion,
    autocorrelation,
    chain_criteria,
    stay_apart,
)
from ppl_vi.truth.chains.leapfrog import ChainState
from ppl_vi.truth.chains.reparametrisation import Reparametrisation
from ppl_vi.truth.chains.sampler import HMC, adapt_step_size, adapt_step_sizes, chains_at
from ppl_vi.truth.chains.starts import dispersed, started_anew
from ppl_vi.truth.importance.draws import ImportanceDraws, importance_draws
from ppl_vi.truth.importance.evidence import with_unseen_mass
from ppl_vi.truth.importance.scan import what_may_hide
from ppl_vi.truth.importance.searches import can_be_searched, searched
from ppl_vi.truth.importance.witness import NUM_WITNESSES
from ppl_vi.truth.result import Check, Points, Truth, worst_checks

# The warm-up.
NUM_FIRST_WINDOWS = 2  # lengths of a window before the first inverse mass matrix: more of them start it farther in
FIRST_STEP_SIZE = 0.1  # of the leapfrog steps, before the first transition
LEAST_STEP_SIZE = 1e-300  # counts as a step size that has fallen to 0, as of chains that can't move
FIRST_MAX_LEAPFROG = 10  # leapfrog steps of a trajectory at most, before the first inverse mass matrix is known
WINDOW_MAX_STEP_SIZE = 0.3  # with which a window may start, because its inverse mass matrix is a new one

# The pilot. It tries two lengths of trajectories, in whitened coordinates: half a period of a standard normal density
# and a whole one. A transition costs as much as its leapfrog steps and OVERHEAD_IN_LEAPFROG_STEPS more.
TRAJECTORY_LENGTHS = (math.pi, 2 * math.pi)
OVERHEAD_IN_LEAPFROG_STEPS = 4
MAX_PILOT_LAG = 30  # transitions apart: at larger lags correlations are extrapolated, because the pilot is too short
MAX_PILOT_CORRELATION = 0.6 * MAX_CORRELATION  # smaller than the limit itself, so that draws at this lag seldom miss it

# The draws. A run is repeated at half the step size if a transition was divergent, and with twice as many transitions
# between draws if these are correlated.
MAX_RUNS = 6
MAX_THINNING = 60  # transitions from one draw to the next; more would take too long
MAX_PILOT_THINNING = 2 * MAX_THINNING  # no full run is tried if the pilot asks for more; it may err by a factor of 2

GIVEN_UP = (
    "given up after a pilot run: by its correlations, independent draws would be about {:.3g} transitions apart, and "
    f"above {MAX_PILOT_THINNING} a full run is not tried"
)
SEPARATE_MODES = "chains stay in separate modes"
NOT_TRIED = "they are not asked for"
CHAINS, INDEPENDENT = "reference draws", "importance sampling"  # how the draws of a problem were taken
ALL_MODES_FOUND = "the chains have visited every separate mode of the posterior, which no check here can prove{}"
NO_MASS_MISSED = (
    f"no mass of the posterior lies where neither the fitted density nor any of {NUM_WITNESSES} short chains from "
    "dispersed starts has come, which no check here can prove: {}"
)
SMOOTH_DENSITY = "the posterior density{} is smooth enough for the trajectories of Hamiltonian Monte Carlo"
RELATIVE_LATENTS = ", with {} expressed relative to the location and scale of the prior,"


@dataclass(frozen=True)
class ChainSettings:
    """How many chains and draws.

    Attributes:
        num_chains: number of chains, each from its own start.
        num_draws: draws that are kept of each chain.
        num_warmup: transitions of each window of the warm-up.
        num_windows: windows of the warm-up; before each, coordinates and inverse mass matrix are set anew.
        acceptance: mean probability of acceptance that the step size aims at.
        num_proposed: draws of each proposal density for log p(x).
    """

    num_chains: int = 100
    num_draws: int = 100
    num_warmup: int = 80
    num_windows: int = 5
    acceptance: float = 0.9
    num_proposed: int = 20_000


@dataclass(frozen=True, eq=False)
class ReferenceDraws:
    """The draws of one problem and what the chains met on the way.

    Attributes:
        coordinates: in which the chains moved.
        u: the draws in these, `(N, C, D)`, draws by chains.
        value: the log density in these coordinates, `(N, C)`, nats.
        energy: of every transition, including those between draws, `(T, C)`, nats.
        num_diverged: how many transitions were divergent.
        given_up: why no better draws were tried for, or "".
    """

    coordinates: Reparametrisation
    u: Tensor
    value: Tensor
    energy: Tensor
    num_diverged: int
    given_up: str = ""

    @cached_property
    def v(self) -> Tensor:
        """The draws in the coordinates of `Target.constrain`, `(N, C, D)`."""
        return self.coordinates.to_unconstrained(self.u.flatten(0, 1)).reshape(self.u.shape)

    @cached_property
    def numbers(self) -> Tensor:
        """All that is checked: every coordinate of `v` and the log density in these, `(N, C, D + 1)`."""
        value = self.coordinates.unconstrained_density(self.v.flatten(0, 1)).reshape(self.value.shape)
        return torch.cat([self.v, value[..., None]], -1)


def reference_truth(
    target: Target, *, settings: ChainSettings | None = None, seed: int = 0, independent: bool = True
) -> Truth:
    """Posterior draws of every problem, of any number of latents, with log p(x) and its standard error.

    They are weighted draws by importance sampling for the problems where these meet their criteria, else draws of
    chains.

    The draws are saved in the user's cache folder, `ppl_vi/truths`, and found there by the same target, settings, seed
    and versions.

    Args:
        target: any model.
        settings: how many chains and draws.
        seed: of starts, chains and proposals.
        independent: whether importance sampling is tried at all.
    """
    chosen = settings or ChainSettings()
    with target.isolated(seed):
        coordinates = [Reparametrisation.of(target, problem) for problem in range(target.num_problems)]
        found = [_saved_or_sampled(one, chosen, seed, independent) for one in coordinates]
    reasons = tuple(one.reason for one in found)
    u, log_weight = (torch.stack([getattr(one, name) for one in found]) for name in ("u", "log_weight"))
    group = torch.arange(chosen.num_chains).repeat_interleave(chosen.num_draws)
    points = Points(u, log_weight, group, "draws")
    methods = sorted({one.method for one in found})
    truth = Truth(
        target,
        " and ".join(methods),
        np.array([one.log_evidence for one in found]),
        np.zeros(len(found)),
        worst_checks(check for one in found for check in one.checks),
        reasons=reasons if any(reasons) else (),
        grade="uncertified" if any(reasons) else "checked",
        assumptions=_assumptions(target, coordinates, methods, independent),
        log_evidence_std_error=np.array([one.std_error for one in found]),
        make_points=lambda: (points,),
    )
    return truth if target.closed_form is None else _with_closed_form(truth, target.closed_form(*target.args))


def _assumptions(
    target: Target, coordinates: list[Reparametrisation], methods: list[str], has_scanned: bool
) -> tuple[str, ...]:
    """What draws take for granted, with the names of the latents that were expressed relative to their priors."""
    relative = [site.name for site in target.latents if any(site.name in one.site_terms for one in coordinates)]
    smooth = SMOOTH_DENSITY.format(RELATIVE_LATENTS.format(", ".join(relative)) if relative else "")
    density = coordinates[0].density
    hiding = what_may_hide(density)
    all_found = ALL_MODES_FOUND.format(f": {hiding}" if has_scanned and can_be_searched(density) else "")
    of_method = {CHAINS: (all_found, smooth), INDEPENDENT: (NO_MASS_MISSED.format(hiding),)}
    return tuple(assumption for method in methods for assumption in of_method[method])


def _with_closed_form(truth: Truth, closed_form: Tensor) -> Truth:
    """The truth with log p(x) from its closed form, which the draws must have found too."""
    exact = closed_form.detach().cpu().numpy()
    away = np.abs(exact - truth.log_evidence) / truth.log_evidence_std_error
    reasons = [
        reason or ("" if off <= MAX_STANDARD_ERRORS else f"sampling is {off:.1f} standard errors from the closed form")
        for reason, off in zip(truth.reasons or [""] * len(exact), away, strict=True)
    ]
    check = Check("difference of sampling and closed form (in standard errors)", float(away.max()), MAX_STANDARD_ERRORS)
    return replace(
        truth,
        log_evidence=exact,
        log_evidence_error=8 * np.finfo(np.float64).eps * (1 + np.abs(exact)),
        log_evidence_std_error=np.zeros_like(exact),
        checks=(*truth.checks, check),
        reasons=tuple(reasons) if any(reasons) else (),
        grade="uncertified" if any(reasons) else "certified",
    )


def _saved_or_sampled(
    coordinates: Reparametrisation, settings: ChainSettings, seed: int, independent: bool
) -> SavedReference:
    """What an earlier run has saved, else new draws."""
    target, problem = coordinates.target, coordinates.problem

    def compute() -> SavedReference:
        prior = prior_draws(target, problem, settings.num_chains, seed)
        num = settings.num_chains * settings.num_draws
        with torch.no_grad():
            modes = searched(coordinates, prior, seed) if independent else NOT_TRIED
            found = importance_draws(coordinates, modes, num, seed)
            if found is not None:
                return _of_importance(found)
            hidden = None if isinstance(modes, str) else modes.hidden
            return sampled_reference(coordinates, prior, settings, seed, hidden)

    everything = asdict(settings) | {"seed": seed, "independent": independent}
    return cached_reference(target, coordinates.unconstrained_density, problem, everything, compute)


def _of_importance(found: ImportanceDraws) -> SavedReference:
    checks = tuple(criterion.check for criterion in found.criteria)
    evidence = with_unseen_mass(found.evidence, len(found.v))
    return SavedReference(INDEPENDENT, found.v, found.log_weight, evidence.value, evidence.std_error, checks, "")


def sampled_reference(
    coordinates: Reparametrisation, prior: Tensor, settings: ChainSettings, seed: int, hidden: Tensor | None = None
) -> SavedReference:
    """Draws of one problem with every check of them, whether they pass or not.

    Args:
        coordinates: in which the chains begin to move.
        prior: draws of the prior in unconstrained space, `(S, D)`, where half of the chains start.
        settings: how many chains and draws.
        seed: of everything random.
        hidden: modes that starts of chains may lead away from, `(K, D)`: chains begin there as well.
    """
    generator = torch.Generator().manual_seed(seed)
    start = dispersed(coordinates, prior, settings.num_chains, generator)
    if hidden is not None and len(hidden):
        start[: len(hidden)] = hidden[: len(start)]
    draws = _sampled(coordinates, start, settings, generator)
    with stage("log p(x) by bridge sampling"):
        by_bridge, by_importance, k_hat = _evidence(draws, settings.num_proposed, seed)
    joint_error = math.hypot(by_bridge.std_error, by_importance.std_error)
    away = abs(by_bridge.value - by_importance.value) / joint_error if joint_error else math.inf
    criteria = (
        *chain_criteria(draws.numbers, draws.energy, draws.num_diverged),
        Criterion("difference of bridge and importance sampling (in standard errors)", away, MAX_STANDARD_ERRORS),
        Criterion("joint standard error of bridge and importance sampling (nats)", joint_error, MAX_LOG_EVIDENCE_ERROR),
        Criterion("Pareto k-hat of the importance weights", k_hat, MAX_PARETO_K_HAT),
    )
    checks = tuple(criterion.check for criterion in criteria)
    failures = [draws.given_up, *(criterion.failure for criterion in criteria)]
    apart = SEPARATE_MODES if any(failures) and stay_apart(draws.numbers) else ""
    reason = "; ".join(filter(None, [apart, *failures]))
    v = draws.v.transpose(0, 1).flatten(0, 1)
    log_weight = torch.full(v.shape[:1], -math.log(len(v)), dtype=v.dtype)
    return SavedReference(CHAINS, v, log_weight, by_bridge.value, by_bridge.std_error, checks, reason)


@dataclass(frozen=True, eq=False)
class _Sampler:
    """Chains that can be run on: the coordinates they move in, how they move, and where they stand."""

    coordinates: Reparametrisation
    hmc: HMC
    state: ChainState


@dataclass(frozen=True, eq=False)
class _Pilot:
    """A run with one length of trajectories.

    Attributes:
        sampler: after the run.
        draws: of every transition.
        thinning: transitions from one independent draw to the next.
        cost: of an independent draw, in leapfrog steps.
    """

    sampler: _Sampler
    draws: ReferenceDraws
    thinning: float
    cost: float


def _sampled(
    coordinates: Reparametrisation, start: Tensor, settings: ChainSettings, generator: torch.Generator
) -> ReferenceDraws:
    """The draws of the first run that meets the criteria for correlation and divergence, or of the last."""
    pilot = _piloted(_warmed_up(coordinates, start, settings, generator), settings.num_draws, generator)
    if pilot.thinning > MAX_PILOT_THINNING:
        return replace(pilot.draws, given_up=GIVEN_UP.format(pilot.thinning))
    sampler, thinning = pilot.sampler, min(math.ceil(pilot.thinning), MAX_THINNING)
    for _ in range(MAX_RUNS):
        sampler, draws = _run("reference draws", sampler, settings.num_draws, thinning, generator)
        correlation = float(autocorrelation(draws.numbers, 1).abs().max())
        correlated, longest = correlation > MAX_CORRELATION, thinning == MAX_THINNING
        if not draws.num_diverged and (longest or not correlated):
            break
        # The correlation over k times as many transitions is at least its k-th power: even the longest thinning fails.
        if correlation ** (MAX_THINNING / thinning) > 2 * MAX_CORRELATION:
            break
        if draws.num_diverged:
            sampler = _halved(sampler)
        thinning = min(2 * thinning, MAX_THINNING) if correlated else thinning
    return draws


def _halved(sampler: _Sampler) -> _Sampler:
    """The same with half the step size."""
    return replace(sampler, hmc=replace(sampler.hmc, step_size=sampler.hmc.step_size / 2))


def _warmed_up(
    coordinates: Reparametrisation, start: Tensor, settings: ChainSettings, generator: torch.Generator
) -> _Sampler:
    """Coordinates, inverse mass matrix and step size from where chains have been, set anew after each window."""
    num = (NUM_FIRST_WINDOWS + settings.num_windows + 1) * settings.num_warmup
    with stage(f"warming up {len(start)} chains", "transition", num) as running:
        return _warmed_up_in_windows(coordinates, start, settings, generator, running)


def _warmed_up_in_windows(
    coordinates: Reparametrisation,
    start: Tensor,
    settings: ChainSettings,
    generator: torch.Generator,
    running: Running,
) -> _Sampler:
    num, target = settings.num_warmup, settings.acceptance
    identity = torch.eye(start.shape[1], dtype=start.dtype)
    hmc = HMC(torch.tensor(FIRST_STEP_SIZE), TRAJECTORY_LENGTHS[0], identity, FIRST_MAX_LEAPFROG)
    state = chains_at(coordinates.density, start)
    states, hmc = adapt_step_sizes(coordinates.density, state, hmc, NUM_FIRST_WINDOWS * num, target, generator, running)
    for _ in range(settings.num_windows):
        place = started_anew(states[-1].value, start.shape[1], generator)
        seen = [ChainState(one.u[place], one.value[place], one.slope[place]) for one in states[-num // 2 :]]
        u, slope = torch.cat([state.u for state in seen]), torch.cat([state.slope for state in seen])
        refitted = coordinates.fitted(u, slope)
        moved = refitted.from_unconstrained(coordinates.to_unconstrained(u))
        if bool(moved.isfinite().all()):  # else some point overflows in the new coordinates, and the old ones stay
            coordinates, u = refitted, moved
        hmc = HMC(hmc.step_size.clamp(max=WINDOW_MAX_STEP_SIZE), TRAJECTORY_LENGTHS[0], _covariance_factor(u))
        state = chains_at(coordinates.density, u[-len(start) :])
        states, hmc = adapt_step_sizes(coordinates.density, state, hmc, num, target, generator, running)
    states, hmc = adapt_step_size(coordinates.density, states[-1], hmc, num, target, generator, running)
    return _Sampler(coordinates, hmc, states[-1])


def _piloted(sampler: _Sampler, num: int, generator: torch.Generator) -> _Pilot:
    """The run, among those with each length of trajectories, in which an independent draw costs least."""
    pilots = []
    for length in TRAJECTORY_LENGTHS:
        sampler = replace(sampler, hmc=replace(sampler.hmc, trajectory_length=length))
        sampler, draws = _run("pilot run", sampler, num, 1, generator)
        thinning = _thinning(torch.cat([draws.v, draws.v.square(), draws.numbers[..., -1:]], -1))
        mean_num_leapfrog = length / 2 / max(float(sampler.hmc.step_size), LEAST_STEP_SIZE)
        pilots.append(_Pilot(sampler, draws, thinning, thinning * (OVERHEAD_IN_LEAPFROG_STEPS + mean_num_leapfrog)))
    best = min(pilots, key=lambda pilot: pilot.cost)
    chosen = replace(best.sampler, state=sampler.state)
    return replace(best, sampler=_halved(chosen) if best.draws.num_diverged else chosen)


def _covariance_factor(u: Tensor) -> Tensor:
    """The Cholesky factor of the covariance of draws `(S, D)`, which is first shrunk by 5% towards its diagonal."""
    covariance = torch.cov(u.T).reshape(u.shape[1], u.shape[1])
    shrunk = 0.95 * covariance + 0.05 * torch.diag(torch.diagonal(covariance))
    factor, failed = torch.linalg.cholesky_ex(shrunk)
    return torch.diag(torch.diagonal(covariance).clamp(min=1e-12).sqrt()) if bool(failed) else factor


def _run(
    name: str, sampler: _Sampler, num: int, thinning: int, generator: torch.Generator
) -> tuple[_Sampler, ReferenceDraws]:
    """The sampler after `num` draws of each chain, `thinning` transitions apart, and these draws; a stage `name`."""
    state, states, energy, num_diverged = sampler.state, [], [], 0
    with stage(name, "transition", num * thinning) as running:
        for step in range(num * thinning):
            transition = sampler.hmc.transition(sampler.coordinates.density, state, generator)
            state = transition.state
            energy.append(transition.energy)
            num_diverged += int(transition.diverged.sum())
            if (step + 1) % thinning == 0:
                states.append(state)
            running.advance()
    u, value = torch.stack([state.u for state in states]), torch.stack([state.value for state in states])
    draws = ReferenceDraws(sampler.coordinates, u, value, torch.stack(energy), num_diverged)
    return replace(sampler, state=state), draws


def _thinning(values: Tensor) -> float:
    """The smallest lag at which no number of `values` `(N, C, K)` is correlated with itself any more.

    Lags up to `MAX_PILOT_LAG` are looked at. If numbers are still correlated there, their correlation is supposed to go
    on falling exponentially, as fast as it fell until there; it is infinite where nothing fell.
    """
    for lag in range(1, min(MAX_PILOT_LAG + 1, len(values))):
        correlation = float(autocorrelation(values, lag).max())
        if correlation < MAX_PILOT_CORRELATION:
            return lag
    return lag * math.log(MAX_PILOT_CORRELATION) / math.log(correlation) if correlation < 1 else math.inf


def _evidence(draws: ReferenceDraws, num: int, seed: int) -> tuple[EvidenceEstimate, EvidenceEstimate, float]:
    """log p(x) by bridge and by importance sampling, and Pareto's k-hat of the importance weights.

    The proposal of bridge sampling is fitted to the first half of the chains and used on the second half; that of
    importance sampling, with heavier tails, is fitted to the second half. So the two estimates share no draw.
    """
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
