"""What went wrong in the step in which a fit diverged: which site or parameter, and which value.

The step is run once more, particle by particle, and the first value that is not finite is named: of the guide's sites,
then of the model's, then of the gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.func import grad

from ppl_vi.svi.objectives import Objective, surrogate_loss
from ppl_vi.svi.program import Program, guide_sites


def culprit(
    program: Program, objective: Objective, theta: Tensor, row: tuple[Tensor, ...], noise: tuple[Tensor, ...]
) -> str:
    """Says in words which value is the first that is not finite when one fit's step is run again.

    Args:
        program, objective: what was fitted, and by which objective.
        theta: the parameters before the step, `(D,)`.
        row: the data of the fit's problem.
        noise: of the step, for each draw `(P, *shape)`.
    """
    num_particles = len(noise[0]) if noise else 1
    for p in range(num_particles):
        draws = tuple(n[p] for n in noise)
        guide_trace = program.guide_trace(theta, row, draws)
        for kind, trace in (("guide", guide_trace), ("model", program.model_trace(theta, guide_trace, row, draws))):
            nodes = guide_sites(trace) if kind == "guide" else _sample_sites(trace)
            for name, node in nodes.items():
                wrong_value, wrong_density = _bad(node["value"], "value"), _bad(node["log_prob"], "log density")
                if wrong_value:
                    return f"{kind} site '{name}' has {wrong_value}"
                if wrong_density:
                    return f"{kind} site '{name}' has {wrong_density} at {_shown(node['value'])}"
    gradient = grad(lambda point: surrogate_loss(program, objective, point, row, noise)[0])(theta)
    for name, part in program.layout.unflatten(gradient).items():
        found = _bad(part, "gradient")
        if found:
            return f"parameter '{name}' has {found} at {_shown(program.layout.unflatten(theta)[name])}"
    return f"the step left the finite numbers from {_shown(theta)}"


def _sample_sites(trace: Any) -> dict[str, Any]:
    return {name: node for name, node in trace.nodes.items() if node["type"] == "sample"}


def _bad(value: Any, what: str) -> str:
    """The first number that is not finite, after `what` it is, or "" where all are finite."""
    tensor = torch.as_tensor(value)
    if bool(tensor.isfinite().all()):
        return ""
    return f"{what} {tensor[~tensor.isfinite()].flatten()[0].item()}"


def _shown(value: Tensor) -> str:
    """The first four numbers of a tensor."""
    return ", ".join(f"{x:.4g}" for x in value.detach().flatten()[:4].tolist()) + (" ..." if value.numel() > 4 else "")
