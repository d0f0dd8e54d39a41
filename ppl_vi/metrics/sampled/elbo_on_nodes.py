"""Minus the ELBO of a family's members on fixed nodes of noise, where it is an ordinary function of the parameters."""

from __future__ import annotations

import torch
from torch import Tensor

from ppl_vi.compiler.many_points import MIN_SEARCH_NUMBERS, POINT_OVERHEAD, WeightedSum
from ppl_vi.metrics.sampled.noise_rules import MOST_LATTICE, NoiseRules, noise_rules
from ppl_vi.svi.program import Program, guide_sites
from ppl_vi.svi.randomness import Draw
from ppl_vi.target.isolation import whole_plates

# Numbers that the largest temporary of all nodes together may have where torch's operations run: 2 MiB in double
# precision, which stay in the processor's cache.
MAX_NUMBERS = 2**18
# The curvature of a member takes one gradient for each parameter: a search in more parameters goes without.
MAX_PARAMETERS = 400
# A search evaluates its rule about so many times for each parameter.
EVALUATIONS_PER_PARAMETER = 20


def no_gradient(program: Program) -> str:
    """Why a family's members can't be improved along gradients on fixed noise, or ""."""
    if not program.latent_draws:
        return "the guide draws nothing"
    with torch.no_grad(), whole_plates():
        noise = tuple(torch.full(draw.shape, 0.5, dtype=draw.dtype) for draw in program.latent_draws)
        trace = program.guide_trace(program.initial, program.target.row(0), noise)
    for name, node in guide_sites(trace).items():
        if not getattr(node["fn"], "has_rsample", False):
            return f"site '{name}' has no reparameterised draw, so its best member can't be found on fixed noise"
    return ""


def nodes(draws: tuple[Draw, ...], num_points: int, seed: int, plain: bool = False, finer: int = 1) -> NoiseRules:
    """One rule for the expectation over a guide's noise, with which members are searched for.

    Sobol points of normal numbers are shifted and scaled to mean 0 and covariance 1, unless they are to be plain. The
    rule then integrates quadratic functions of the noise exactly: the log density of a Gaussian guide, and the log
    joint where it is Gaussian, too. It is no longer unbiased, which matters little, since members that are found by it
    are measured by other rules.

    Args:
        draws: what the guide draws.
        num_points: nodes of the rule.
        seed: of the scrambled points.
        plain: whether to leave Sobol points as they are.
        finer: times as many Sobol points where they are shifted and scaled.
    """
    sizes = [draw.shape.numel() for draw in draws]
    if plain or any(draw.kind != "normal" for draw in draws) or not MOST_LATTICE < sum(sizes) < num_points / 2:
        return noise_rules(draws, num_points, seed, num_rules=1)
    rule = noise_rules(draws, finer * num_points, seed, num_rules=1)
    points = torch.cat([part[0].reshape(finer * num_points, -1) for part in rule.noise], -1)
    points = points - points.mean(0)
    factor = torch.linalg.cholesky(points.mT @ points / len(points))
    points = torch.linalg.solve_triangular(factor, points.mT, upper=False).mT
    noise = tuple(part.reshape(old.shape) for part, old in zip(points.split(sizes, -1), rule.noise, strict=True))
    return NoiseRules(noise, rule.weight)


class NegativeElbo:
    """Minus the ELBO on the nodes of a rule, and its gradient in the parameters.

    Args:
        program: of the family.
        rule: of as many nodes as those of the search; machine code is made where a search on it takes longer than that.

    Attributes:
        sum: what computes it.
    """

    def __init__(self, program: Program, rule: NoiseRules) -> None:
        num_noise = len(program.latent_draws)

        def of_one(theta: Tensor, *given: Tensor) -> Tensor:
            particle = program.sample(theta, given[num_noise:], given[:num_noise])
            return particle.log_guide - particle.log_joint

        self.sum = WeightedSum(of_one, program.target.width, MAX_NUMBERS // program.target.width, program.isolated)
        if _pays(program, rule):
            self.sum.compile(program.initial, *_points(rule, program.initial), program.target.row(0))

    def __call__(self, theta: Tensor, row: tuple[Tensor, ...], rule: NoiseRules) -> tuple[Tensor, Tensor]:
        """The gradient `(D,)` and the value, nats, at `theta` `(D,)` for one problem's data."""
        return self.sum(theta, *_points(rule, theta), row)


def _points(rule: NoiseRules, like: Tensor) -> tuple[list[Tensor], Tensor]:
    """The nodes `(S, *shape)` and weights `(S,)` of the only rule that there is, in the parameters' dtype."""
    return [part[0].to(like) for part in rule.noise], rule.weight[0].to(like)


def _pays(program: Program, rule: NoiseRules) -> bool:
    """Whether a search on a rule takes longer than making machine code for it."""
    per_evaluation = rule.weight.numel() * (program.target.width + POINT_OVERHEAD)
    num = program.layout.size  # machine code holds a gradient of each node, which for many parameters is too much
    return num <= MAX_PARAMETERS and EVALUATIONS_PER_PARAMETER * num * per_evaluation >= MIN_SEARCH_NUMBERS
