"""The truth of any model of one to three unconstrained numbers: quadrature that is checked by what owes it nothing.

A tree of Gauss-Legendre cells in standardised coordinates integrates the density over a box that grows until its rim
holds nothing. Then come, one after another: a second rule; ascents and a wide scan, none of which may see more than the
tree did; importance sampling; and Hamiltonian Monte Carlo from resampled starts, whose draws must fall into regions
with the masses that the quadrature gives them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ppl_vi.target.evaluation import prior_draws
from ppl_vi.target.log_density import Density
from ppl_vi.target.target import Target
from ppl_vi.truth.chains.sampler import HMC, adapt_step_size, chains_at
from ppl_vi.truth.quadrature.bricks import MOST_POINTS, BrickRule, Bricks, Tree, grow_tree, look
from ppl_vi.truth.quadrature.search import AT_AN_END, Found, search
from ppl_vi.truth.quadrature.standardized import Standardized
from ppl_vi.truth.result import Check, Grade, Points, Truth

AGREEMENT = 1e-8  # nats: what the two rules must agree to
CHANGES = 1e-6  # of the evidence: what all halvings together may change; their halves are far better than that
SPREAD = 1e-4  # nats: of the sub-lattices
OUTSIDE = 1e-10  # of the evidence: the most that may seem to lie outside the box; its error counts ten times that
SURPRISE = 5.0  # standard errors: one comparison in 2 million is as far off by chance
UNSEEN = 14.0  # nats that a point of the scan may lie above the mean density of its brick
BOXES = (6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0, 96.0)  # half-widths: from 20 to 7e20 standard deviations
SHELL = 2.0  # thickness of the shells at the rim
RULES = {1: (16, 1e-12), 2: (10, 1e-10), 3: (7, 1e-10)}  # order and tolerance, by the number of latents
FOR_POINTS = {1: (12, 1e-9), 2: (7, 1e-8), 3: (5, 1e-6)}  # the same, of the points handed out: no more than needed
COARSEST = 0.5  # spacing of a lattice
OFFSET = 0.2360679775  # of it, in spacings: no node on a plane of symmetry
LATTICE_NODES = {1: 2**16, 2: 2**18, 3: 2**19}
MOST_CHEAP_POINTS, MOST_NUMBERS = 2**25, 2**30  # of a tree, and of the widest temporaries at all of its points
NEGLIGIBLE = 28.0  # nats below the largest: points of such weights are not handed out, 7e-13
TRUSTED = 0.002  # efficiency of importance sampling above which its covariance sets the coordinates
CORRELATED = 0.3
NUM_CHAINS, NUM_WARMUP, NUM_KEPT = 256, 30, 40
ASSUMED = (
    "beyond the box the posterior's mass goes on falling from shell to shell as it does at the rim",
    "a density that is no number where a latent overflows, or beyond where it is e^-750 of its highest, is 0",
    "no part of the posterior is so narrow that cells, scan, ascents and chains all step over it",
)


def black_box_truth(target: Target, *, seed: int = 0) -> Truth:
    """log p(x) = log int p(x, z(u)) |dz/du| du of every problem of a target of one to three unconstrained numbers.

    Two rules must agree to 1e-8 nats. What is found wanting is in `Truth.reasons`, and the truth then uncertified.

    Args:
        target: any model.
        seed: of the search and the chains.

    Raises:
        ValueError: the target has more numbers, or its density is nowhere positive.
    """
    if target.dim not in RULES:
        raise ValueError(f"quadrature reaches {max(RULES)} unconstrained numbers; '{target.name}' has {target.dim}")
    with target.isolated(seed):
        found = []
        for problem in range(target.num_problems):
            prior = prior_draws(target, problem, seed=seed)
            with torch.no_grad():
                found.append(integrate(Density.of(target, problem), prior, target.laplace.loc[problem], seed))
    return assembled(target, "tree of bricks", found)


@dataclass(frozen=True, eq=False)
class Integral:
    """One problem's quadrature.

    Attributes:
        log_evidence: nats.
        error: of it, nats.
        checks: all of them, failed ones too.
        reason: why it is not to be trusted, or "".
        rules: points `(S, D)` and log weights `(S,)` of two rules, the better one first.
    """

    log_evidence: float
    error: float
    checks: tuple[Check, ...]
    reason: str
    rules: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]


def assembled(target: Target, method: str, found: list[Integral]) -> Truth:
    """The truth of all problems from their quadratures; a closed form is compared where there is one."""
    log_evidence = np.array([one.log_evidence for one in found])
    error = np.array([one.error for one in found])
    reasons = [one.reason for one in found]
    checks = [
        max((one.checks[i] for one in found), key=lambda check: math.inf if math.isnan(check.error) else check.error)
        for i in range(min(len(one.checks) for one in found))
    ]
    if target.closed_form is not None:
        exact = target.closed_form(*target.args).detach().cpu().numpy()
        away = np.abs(exact - log_evidence)
        error = error + away  # which knows of the density's own rounding, as no rule does
        tolerance = AGREEMENT + 1e-12 * float(np.abs(exact).max())
        checks.append(Check("tree of bricks against the closed form", float(away.max()), tolerance))
        for i in np.flatnonzero(~(away <= tolerance)):
            reasons[i] = reasons[i] or f"the tree is {away[i]:.1e} nats from the closed form"
    grade: Grade = "uncertified" if any(reasons) else "checked" if target.closed_form is None else "certified"
    points = tuple(_stacked([one.rules[i] for one in found]) for i in (0, 1))
    return Truth(
        target,
        method,
        log_evidence,
        error,
        tuple(checks),
        reasons=tuple(reasons) if any(reasons) else (),
        grade=grade,
        assumptions=() if grade == "certified" else ASSUMED,
        make_points=lambda: points,
    )


def _stacked(rules: list[tuple[Tensor, Tensor]]) -> Points:
    """One problem a row; what a row has less than another is filled up with its first point, of weight 0."""
    most = max(len(u) for u, _ in rules)
    u = torch.stack([torch.cat([u, u[:1].expand(most - len(u), -1)]) for u, _ in rules])
    nothing = [w.new_full((most - len(w),), -torch.inf) for _, w in rules]
    log_weight = torch.stack([torch.cat([w, n]) for (_, w), n in zip(rules, nothing, strict=True)])
    return Points(u, log_weight, torch.zeros(most, dtype=torch.int64, device=u.device), "rule")


def integrate(density: Density, prior: Tensor, start: Tensor, seed: int) -> Integral:
    """The quadrature of one density, with all that checks it.

    Args:
        density: of one to three numbers.
        prior: draws to begin the search with, `(N, D)`.
        start: a point of finite density, `(D,)`.
        seed: of search and chains.
    """
    found = search(density, prior, start, seed)
    surface = standardized(density, found)
    order, tolerance = RULES[density.dim]
    tree, half_width = grown(surface, order, tolerance, found)
    if tree.reason:
        return _given_up(surface, tree)
    lattice = lattice_rule(surface, tree)
    name = "trapezoid lattice" if lattice is not None else "another order"
    second = lattice if lattice is not None else _nodes(surface, tree, order + 3)
    difference = abs(float(second[1].logsumexp(0)) - tree.log_mass)
    outside = beyond(tree.bricks, tree.log_mass, half_width)
    rounding = 16 * torch.finfo(density.dtype).eps * (1 + abs(tree.log_mass) + float(found.modes.value.abs().max()))
    importance = abs(found.log_evidence - tree.log_mass) / math.hypot(found.std_error, 1e-6)
    surprise = region_surprise(density, surface, found.sample, tree, seed)
    figures = (
        ("tree of bricks: sum of all changes under halving", tree.error, CHANGES),
        (f"tree of bricks against {name}", difference, AGREEMENT + rounding),
        ("mass outside the box", outside, OUTSIDE),
        ("nats of density above a brick's own, at modes and scanned points", unseen(surface, tree, found), UNSEEN),
        ("evidence by importance sampling, standard errors", importance, SURPRISE),
        ("masses of regions by HMC, standard errors", surprise, SURPRISE),
    )
    checks = tuple(Check(*figure) for figure in figures)
    failed = [f"{c.name}: {c.error:.1e}, allowed {c.tolerance:g}" for c in checks if not c.error <= c.tolerance]
    reason = next(iter(failed), "")
    coarse = _tree(surface, *FOR_POINTS[density.dim], found, half_width)
    order, _ = FOR_POINTS[density.dim]
    better = lattice if lattice is not None else _nodes(surface, coarse, order + 2)
    rules = (_handed_out(surface, *better), _handed_out(surface, *_nodes(surface, coarse, order)))
    return Integral(tree.log_mass, max(difference, tree.error) + 10 * outside + rounding, checks, reason, rules)


def _given_up(surface: Standardized, tree: Tree) -> Integral:
    """What an unsettled tree has: bricks as points, weighed by what the rule saw and by the density at the middle.

    Raises:
        ValueError: it has not even these.
    """
    if not len(tree.leaves):
        raise ValueError(f"{surface.density.name}: {tree.reason}: {AT_AN_END}")
    leaves = tree.leaves[tree.leaves.log_mass.topk(min(len(tree.leaves), 4096)).indices]
    center = leaves.center
    seen = _handed_out(surface, center, leaves.log_mass)
    middle = _handed_out(surface, center, surface(center) + leaves.log_volume)
    check = Check("tree of bricks: sum of all changes under halving", math.inf, CHANGES)
    return Integral(tree.log_mass, math.inf, (check,), f"tree of bricks: {tree.reason}", (seen, middle))


def standardized(density: Density, found: Found) -> Standardized:
    """Coordinates in which the posterior has about mean 0 and covariance I."""
    center, covariance = found.sample.mean(0), torch.cov(found.sample.T).reshape(density.dim, density.dim)
    if not (found.efficiency > TRUSTED and bool((torch.diagonal(covariance) > 0).all())):
        center, covariance = found.modes.u[0], found.modes.factor[0] @ found.modes.factor[0].mT
    scale = torch.diagonal(covariance).sqrt()
    correlation = covariance / (scale[:, None] * scale)
    # a funnel stays along its axis: turned by chance, it would need bricks as short as it is narrow
    if bool((correlation - torch.eye(density.dim).to(scale)).abs().max() > CORRELATED):
        factor, failed = torch.linalg.cholesky_ex(covariance)
        if not bool(failed):
            return Standardized(density, center, factor, found.modes.u[0])
    return Standardized(density, center, torch.diag(scale), found.modes.u[0])


def grown(surface: Standardized, order: int, tolerance: float, found: Found) -> tuple[Tree, float]:
    """The tree over a box that leaves out no more than `OUTSIDE`, and the box's half-width."""
    farthest = float(surface.inverse(found.modes.u).abs().max()) + 2 * SHELL
    for half_width in [box for box in BOXES if box >= farthest] or BOXES[-1:]:
        tree = _tree(surface, order, tolerance, found, half_width)
        if tree.reason or beyond(tree.bricks, tree.log_mass, half_width) <= OUTSIDE:
            break
    return tree, half_width


def _tree(surface: Standardized, order: int, tolerance: float, found: Found, half_width: float) -> Tree:
    dim = surface.density.dim
    line = torch.arange(-half_width + 1, half_width, 2, dtype=surface.center.dtype)
    center = torch.cartesian_prod(*[line] * dim).reshape(-1, dim)
    inverse = torch.linalg.inv(surface.factor)
    width = torch.linalg.vector_norm(inverse @ found.modes.factor, dim=-1)  # of the modes, along each axis
    center, half = around(center, torch.ones_like(center), surface.inverse(found.modes.u), width)
    rule = BrickRule.of(order, dim, center)
    return grow_tree(surface, look(surface, center, half, rule), rule, tolerance, _most_points(surface.density))


def _most_points(density: Density) -> int:
    """Of a tree: more where one costs little, so that the densities of tens of data points may have many corners."""
    return max(MOST_POINTS, min(MOST_CHEAP_POINTS, MOST_NUMBERS // density.width))


def around(center: Tensor, half: Tensor, points: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    """Bricks halved until those that hold one of points `(M, D)` have at most its half-widths, `width` `(M, D)`."""
    done: list[tuple[Tensor, Tensor]] = []
    while len(center):
        near = ((points[:, None] - center).abs() <= half * (1 + 1e-9)).all(-1)
        excess = torch.where(near[..., None], half / (2 * width[:, None]), 0.0).amax(0)
        wide = excess.amax(1) > 1
        done.append((center[~wide], half[~wide]))
        center, half, excess = center[wide], half[wide], excess[wide]
        axis = torch.nn.functional.one_hot(excess.argmax(1), center.shape[1]).to(half)
        half = half * (1 - axis / 2)
        center = torch.cat([center - axis * half, center + axis * half])
        half = half.repeat(2, 1)
    return torch.cat([c for c, _ in done]), torch.cat([h for _, h in done])


def beyond(bricks: Bricks, log_mass: float, half_width: float) -> float:
    """A geometric series of the shells to come: m r / (1 - r), where m is the last one's mass and r its decline."""
    distance = bricks.center.abs().amax(1)
    mass = (bricks.log_mass - log_mass).exp()
    last = float(mass[distance > half_width - SHELL].sum())
    before = float(mass[(distance <= half_width - SHELL) & (distance > half_width - 2 * SHELL)].sum())
    if last == 0:
        return 0.0
    return last * last / (before - last) if before > last else math.inf


def _nodes(surface: Standardized, tree: Tree, order: int) -> tuple[Tensor, Tensor]:
    """Nodes s of a rule in every leaf, with the log of density times weight."""
    s, log_weight = tree.leaves.nodes(BrickRule.of(order, surface.density.dim, surface.center))
    return s, surface(s) + log_weight


def lattice_rule(surface: Standardized, tree: Tree) -> tuple[Tensor, Tensor] | None:
    """Nodes `(S, D)` of a trapezoid lattice around the leaves, with the log of density times weight.

    Its sub-lattices of twice the spacing err by about the square root of what it does. None if it needs too many nodes.

    Source: Trefethen and Weideman (2014), The exponentially convergent trapezoidal rule.
    """
    dim, spacing, leaves = surface.density.dim, COARSEST, tree.leaves
    low, high = (leaves.center - leaves.half).amin(0), (leaves.center + leaves.half).amax(0)
    while float(((high - low) / spacing).prod()) <= LATTICE_NODES[dim]:
        lines = [torch.arange(math.ceil(float(wide) / spacing)) for wide in high - low]
        index = torch.cartesian_prod(*lines).reshape(-1, dim)
        shift = OFFSET * torch.arange(1, dim + 1) / dim
        s = low + (index + shift) * spacing
        log_weight = surface(s) + dim * math.log(spacing)
        sub = (index.remainder(2) * 2 ** torch.arange(dim)).sum(1)
        parts = torch.stack([log_weight[sub == i].logsumexp(0) for i in range(2**dim)]) + dim * math.log(2)
        total = float(log_weight.logsumexp(0))
        if float((parts - total).abs().max()) < SPREAD and abs(total - tree.log_mass) < AGREEMENT:
            return s, log_weight
        spacing *= 0.75
    return None


def _handed_out(surface: Standardized, s: Tensor, log_weight: Tensor) -> tuple[Tensor, Tensor]:
    matters = log_weight > log_weight.max() - NEGLIGIBLE
    kept = log_weight[matters]
    return surface.at(s[matters]), kept - kept.logsumexp(0)


def unseen(surface: Standardized, tree: Tree, found: Found) -> float:
    """By how much the density at a mode or scanned point exceeds the mean one in its brick, nats.

    In no brick counts as in one of the mean density that a unit cube of negligible mass would have.
    """
    s = surface.inverse(torch.cat([found.modes.u, found.scanned]))
    value = surface(s)
    high = value > tree.log_mass - NEGLIGIBLE
    where = tree.leaves.holding(s[high])
    mean = torch.cat([tree.leaves.log_mass - tree.leaves.log_volume, torch.tensor([tree.log_mass - NEGLIGIBLE])])
    return float((value[high] - mean[where]).max())


def region_surprise(density: Density, surface: Standardized, sample: Tensor, tree: Tree, seed: int) -> float:
    """How many standard errors the mass of the chains in any region is off the tree's.

    Regions are sets of bricks, whose masses are known: eight of about equal mass, and what is in no brick. The chains
    start from what importance sampling drew; each one's share in a region is one observation.
    """
    region = torch.cat([_regions(tree.leaves), torch.tensor([8])])
    mass = (tree.leaves.log_mass - tree.log_mass).exp()
    masses = mass.new_zeros(9).index_add(0, region[:-1], mass)
    generator = torch.Generator(sample.device).manual_seed(seed)
    state = chains_at(density, sample[torch.randperm(len(sample), generator=generator)[:NUM_CHAINS]])
    kernel = HMC(torch.tensor(0.3), math.pi / 2, surface.factor, max_leapfrog=16)
    states, kernel = adapt_step_size(density, state, kernel, NUM_WARMUP, 0.8, generator)
    state, visited = states[-1], []
    for _ in range(NUM_KEPT):
        state = kernel.transition(density, state, generator).state
        visited.append(state.u)
    where = region[tree.leaves.holding(surface.inverse(torch.cat(visited)))].reshape(NUM_KEPT, NUM_CHAINS)
    share = torch.nn.functional.one_hot(where, 9).to(mass).mean(0)
    # where hardly a chain was, the spread among them says little
    least = (masses * (1 - masses)).clamp(min=1e-10).sqrt() / math.sqrt(NUM_KEPT)
    std_error = torch.maximum(share.std(0), least) / math.sqrt(NUM_CHAINS)
    return float(((share.mean(0) - masses).abs() / std_error).max())


def _regions(leaves: Bricks) -> Tensor:
    """Which of eight sets of about equal mass each brick belongs to: halves of halves of halves, along axes in turn."""
    region = torch.zeros(len(leaves), dtype=torch.int64)
    for depth in range(3):
        part = region.clone()
        for of in part.unique():
            rows = (part == of).nonzero()[:, 0]
            rows = rows[leaves.center[rows, depth % leaves.center.shape[1]].argsort()]
            share = (leaves.log_mass[rows] - leaves.log_mass[rows].logsumexp(0)).exp().cumsum(0)
            region[rows] = 2 * of + (share > 0.5)
    return region
