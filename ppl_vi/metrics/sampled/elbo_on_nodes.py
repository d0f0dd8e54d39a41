"""Minus the ELBO of a family's members on fixed nodes of noise.

A guide with reparameterised draws turns base noise into latents. With the noise held at the nodes of a rule, the ELBO
is a weighted sum over the nodes: an ordinary function of the guide's parameters, with an exact gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ppl_vi.compiler.many_points import MIN_SEARCH_NUMBERS, POINT_OVERHEAD, WeightedSum
from ppl_vi.metrics.sampled.noise_rules import MAX_LATTICE_DIM, NoiseRules, noise_rules
from ppl_vi.svi.program import Program, guide_sites
from ppl_vi.svi.randomness import Draw
from ppl_vi.target.isolation import whole_plates

# Where torch's operations run, the largest temporary of all nodes together may hold this many numbers: 2 MiB in double
# precision, which stay in the processor's cache. More of them would be slower, not different.
MAX_TEMPORARY_NUMBERS = 2**18
# The curvature at a member takes one gradient for each parameter. For more parameters than this it would take too long,
# and the search runs without a preconditioner.
MAX_CURVATURE_PARAMETERS = 400
# About how often a search evaluates the ELBO for each of its parameters, as measured. It only decides whether machine
# code is worth compiling.
EVALUATIONS_PER_PARAMETER = 20


def no_gradient(program: Program) -> str:
    """Why a family's members can't be improved along the ELBO's gradient on fixed noise; "" where they can."""
    if not program.latent_draws:
        return "the guide draws nothing"
    with torch.no_grad(), whole_plates():
        noise = tuple(torch.full(draw.shape, 0.5, dtype=draw.dtype) for draw in program.latent_draws)
        trace = program.guide_trace(program.initial, program.target.row(0), noise)
    for name, node in guide_sites(trace).items():
        if not getattr(node["fn"], "has_rsample", False):
            return f"site '{name}' has no reparameterised draw, so its best member can't be found on fixed noise"
    return ""


def search_rule(
    draws: tuple[Draw, ...], num_nodes: int, seed: int, *, plain: bool = False, refined: int = 1
) -> NoiseRules:
    """One rule for the expectation over a guide's noise, on which its family's members are searched.

    Where the noise is normal and no lattice reaches it, the Sobol points are shifted and scaled to mean 0 and
    covariance 1, unless they are to be plain. The rule then integrates quadratic functions of the noise exactly: the
    log density of a Gaussian guide, and the log joint where that is Gaussian, too. It is no longer unbiased, which
    matters little, since the members that a search finds are measured by other rules.

    Args:
        draws: what the guide draws.
        num_nodes: how many nodes the rule has.
        seed: of the scrambled points.
        plain: whether Sobol points are left as they are.
        refined: how many times as many Sobol points there are where they are shifted and scaled.
    """
    sizes = [draw.shape.numel() for draw in draws]
    if plain or any(draw.kind != "normal" for draw in draws) or not MAX_LATTICE_DIM < sum(sizes) < num_nodes / 2:
        return noise_rules(draws, num_nodes, seed, num_rules=1)
    rule = noise_rules(draws, refined * num_nodes, seed, num_rules=1)
    points = torch.cat([part[0].reshape(refined * num_nodes, -1) for part in rule.noise], -1)
    points = points - points.mean(0)
    factor = torch.linalg.cholesky(points.mT @ points / len(points))
    points = torch.linalg.solve_triangular(factor, points.mT, upper=False).mT
    noise = tuple(part.reshape(old.shape) for part, old in zip(points.split(sizes, -1), rule.noise, strict=True))
    return NoiseRules(noise, rule.weight)


class NegativeElbo:
    """Minus the ELBO on the nodes of a rule, and its gradient in the parameters.

    Args:
        program: of the family.
        rule: one that a search uses: machine code is made where the search would take longer than making it.

    Attributes:
        sum: the evaluator of the weighted sum over the nodes and of its gradient.
    """

    def __init__(self, program: Program, rule: NoiseRules) -> None:
        num_noise = len(program.latent_draws)

        def of_one(theta: Tensor, *given: Tensor) -> Tensor:
            particle = program.sample(theta, given[num_noise:], given[:num_noise])
            return particle.log_guide - particle.log_joint

        self.sum = WeightedSum(
            of_one, program.target.width, MAX_TEMPORARY_NUMBERS // program.target.width, program.isolated
        )
        if _pays(program, rule):
            self.sum.compile(program.initial, *_points(rule, program.initial), program.target.row(0))

    def __call__(self, theta: Tensor, row: tuple[Tensor, ...], rule: NoiseRules) -> tuple[Tensor, Tensor]:
        """The gradient `(D,)` and the value, nats, at `theta` `(D,)` for one problem's data."""
        return self.sum(theta, *_points(rule, theta), row)


def _points(rule: NoiseRules, like: Tensor) -> tuple[list[Tensor], Tensor]:
    """The nodes `(P, *shape)` and weights `(P,)` of the single rule in `rule`, in the parameters' dtype."""
    return [part[0].to(like) for part in rule.noise], rule.weight[0].to(like)


def _pays(program: Program, rule: NoiseRules) -> bool:
    """Whether a search on a rule takes longer than making machine code for it.

    Machine code holds the gradient at each node, which for many parameters is too much.
    """
    per_evaluation = rule.weight.numel() * (program.target.width + POINT_OVERHEAD)
    num = program.layout.size
    return num <= MAX_CURVATURE_PARAMETERS and EVALUATIONS_PER_PARAMETER * num * per_evaluation >= MIN_SEARCH_NUMBERS
