"""TODO."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap

from ppl_vi.compiler.eager import eager
from ppl_vi.compiler.kernel import LanesEngine
from ppl_vi.compiler.many_points import CHECKED, MANY, OPERATIONS
from ppl_vi.compiler.simplify import traced
from ppl_vi.metrics.sampled.noise_rules import MOST_LATTICE, Rules, rules
from ppl_vi.svi.engines.step import State
from ppl_vi.svi.program import Program, guide_sites
from ppl_vi.svi.randomness import Draw
from ppl_vi.target.isolation import isolated, whole_plates

_log = logging.getLogger(__name__)
NUMBERS = 2**18  # of a temporary
MOST_PARAMETERS = 400  # whose curvature is taken, by as many gradients on few nodes
EVALUATIONS = 20  # on a rule, for each parameter, that a search may take
WORTH = 2**26  # numbers in the widest temporaries of a search: machine code takes as long to make
MOST_STATE = 2**19  # numbers of gradients at once
AGREEMENT = 1e-9  # of machine code, relative to the largest number of a gradient
Objective = Callable[[Tensor, tuple[Tensor, ...], Rules], tuple[Tensor, Tensor]]


def no_gradient(program: Program) -> str:
    """Why a family's members can't be improved along gradients on fixed noise, or ""."""
    if not program.latent_draws:
        return "the guide draws nothing"
    with isolated(program.target.dtype, seed=0), torch.no_grad(), whole_plates():
        noise = tuple(torch.full(draw.shape, 0.5, dtype=draw.dtype) for draw in program.latent_draws)
        trace = program.guide_trace(program.initial, program.target.row(0), noise)
    for name, node in guide_sites(trace).items():
        if not getattr(node["fn"], "has_rsample", False):
            return f"site '{name}' has no reparameterised draw, so its best member can't be found on fixed noise"
    return ""


def _nodes(draws: tuple[Draw, ...], num_points: int, seed: int, plain: bool = False, finer: int = 1) -> Rules:
    """One rule. Sobol points of normal numbers, of which there are `finer` times as many, are made to have mean 0 and
    covariance 1, unless they are to be plain.

    What is quadratic in them is then integrated exactly: the score of a Gaussian q, and log p where p is Gaussian, too.
    The rule is no longer unbiased, which matters little, since members are only found by it and measured by others.
    """
    sizes = [draw.shape.numel() for draw in draws]
    if plain or any(draw.kind != "normal" for draw in draws) or not MOST_LATTICE < sum(sizes) < num_points / 2:
        return rules(draws, num_points, seed, num_rules=1)
    rule = rules(draws, finer * num_points, seed, num_rules=1)
    points = torch.cat([part[0].reshape(finer * num_points, -1) for part in rule.noise], -1)
    points = points - points.mean(0)
    factor = torch.linalg.cholesky(points.mT @ points / len(points))
    points = torch.linalg.solve_triangular(factor, points.mT, upper=False).mT
    noise = tuple(part.reshape(old.shape) for part, old in zip(points.split(sizes, -1), rule.noise, strict=True))
    return Rules(noise, rule.weight)


def _pays(program: Program, rule: Rules) -> bool:
    """Whether a search on a rule takes longer than machine code for it does to be made."""
    per_evaluation = rule.weight.numel() * (program.target.width + OPERATIONS)
    num = program.layout.size  # each node has a gradient of its own: many are more than the model's numbers
    return num <= MOST_PARAMETERS and EVALUATIONS * num * per_evaluation >= WORTH


def _on_nodes(program: Program) -> Callable[..., tuple[Tensor, Tensor]]:
    """`(theta, *row, *noise, weight)` to the gradient and value of minus the ELBO on nodes of those weights."""
    num_args = len(program.target.args)

    def loss(theta: Tensor, *given: Tensor) -> Tensor:
        row, noise, weight = given[:num_args], given[num_args:-1], given[-1]
        particle = vmap(lambda draws: program.sample(theta, row, draws))(noise)
        return -(weight * (particle.log_joint - particle.log_guide)).sum()

    return grad_and_value(loss)


def _machine_code(program: Program, rule: Rules) -> Objective | None:
    """One call for all nodes, which stand where a fit has its replicas, all of the same parameters.

    What a fit calls its first moment takes the gradient. None where machine code can't be had, or is not the guide's at
    the first of the nodes.
    """
    num_args = len(program.target.args)

    def step(alive: Tensor, theta: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
        row, noise = given[4 : 4 + num_args], given[4 + num_args :]

        def loss(point: Tensor) -> Tensor:
            particle = program.sample(point, row, noise)
            return particle.log_guide - particle.log_joint

        gradient, value = grad_and_value(loss)(theta)
        return (alive, theta, gradient, *given[1:3], value)

    row, few = program.target.row(0), [part[0, :CHECKED] for part in (*rule.noise, rule.weight)]
    try:
        engine = LanesEngine.of_step(step, program.initial, row, MANY, [part[0] for part in few[:-1]])
        with isolated(program.target.dtype, seed=0):
            expected = torch.cat([part.reshape(-1) for part in _on_nodes(program)(program.initial, *row, *few)])
        found = torch.cat([part.reshape(-1) for part in _over_all(engine, program.initial, row, few)])
    except Exception as error:  # whatever a guide or model does that tracing, translation or the compiler do not know
        _log.info("the search runs operation by operation: %s", error)
        return None
    if not bool(((found - expected).abs() <= AGREEMENT * (1 + expected.abs().max())).all()):
        _log.info("the search runs operation by operation: machine code differs from the guide")
        return None
    return lambda theta, row, rule: _over_all(engine, theta, row, [part[0] for part in (*rule.noise, rule.weight)])


def _over_all(
    engine: LanesEngine, theta: Tensor, row: tuple[Tensor, ...], nodes: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Gradient and value on nodes, noise and weight `(P, ...)`, so many at once as take no more than some megabytes."""
    engine = replace(engine, args=tuple(arg[None].contiguous() for arg in row))
    num_pieces = math.ceil(len(nodes[-1]) * len(theta) / MOST_STATE)
    gradient, total = torch.zeros_like(theta), theta.new_zeros(())
    for *noise, weight in zip(*(part.tensor_split(num_pieces) for part in nodes), strict=True):
        same = theta[None, :, None].expand(1, -1, len(weight)).contiguous().mT  # as the engine wants it
        state = State(torch.ones(1, len(weight), dtype=torch.bool), *(((same,),) * 5))
        given = tuple(part.to(theta)[None, None, :, None] for part in noise)
        after, value = engine.advance(state, theta.new_zeros(3, 1), given)
        gradient, total = gradient + weight.to(theta) @ after.first[0][0], total + weight.to(theta) @ value[0, 0]
    return gradient, total


def _graph(program: Program, rule: Rules) -> Objective:
    """For rules of as many nodes as this: a flat graph where it can be traced, of so few nodes at once that its
    temporaries stay in the cache."""
    size = rule.weight.shape[1]
    while size % 2 == 0 and size * program.target.width > NUMBERS:
        size //= 2
    piece = (*(part[0, :size] for part in rule.noise), rule.weight[0, :size])
    graph = _on_nodes(program)
    with isolated(program.target.dtype, seed=0), suppress(Exception):  # what can't be traced is only slower
        graph = eager(traced(graph, (program.initial, *program.target.row(0), *piece)))  # any strides of the noise

    def objective(theta: Tensor, row: tuple[Tensor, ...], rule: Rules) -> tuple[Tensor, Tensor]:
        pieces = zip(*(part[0].split(size) for part in (*rule.noise, rule.weight)), strict=True)
        gradients, values = zip(*(graph(theta, *row, *piece) for piece in pieces), strict=True)
        return torch.stack(gradients).sum(0), torch.stack(values).sum()

    return objective
