"""One of posteriordb's posteriors: its truth beside the published draws and another route, as one record.

    python -m benchmarks.posteriordb_case --posteriordb PATH --name NAME --seconds 200 --bytes 8000000000

This is what `benchmarks.posteriordb` runs in a process of its own for each posterior.
"""

from __future__ import annotations

import argparse
import math
import sys
from typing import Any

import numpy as np
import torch
from arviz_stats.base import array_stats
from torch import Tensor

import ppl_vi
from benchmarks.limited_process import answer, limit_this_process, used_seconds
from benchmarks.posteriordb_bridge import bridge_evidence
from models.posteriordb import Posterior, PosteriorDatabase, posterior
from models.posteriordb.posterior import by_name
from ppl_vi.target.evaluation import log_joint
from ppl_vi.target.sites import Latents
from ppl_vi.target.target import Target
from ppl_vi.truth.result import Truth

Draws = dict[str, np.ndarray]
BRIDGE = "bridge sampling of the published draws"


def record(database: PosteriorDatabase, name: str, seed: int = 0) -> dict[str, Any]:
    """What the table shows of one posterior."""
    port = posterior(database, name)
    target = port.target(name)
    began = used_seconds()
    truth = ppl_vi.ground_truth(target, seed=seed)
    found = _evidence(truth) | {"seconds": used_seconds() - began}
    draws = database.reference_draws(name)
    found["constant"], found["note"] = port.constant, port.note
    found["numbers"] = target.dim
    found["other_route"] = _other_route(port, target, draws)
    found["moments"] = moments(truth, port, draws)
    return found


def _evidence(truth: Truth) -> dict[str, Any]:
    """log p(x); its error is the bound on the numerical error and twice the standard error, as a truth is printed."""
    bound, std_error = float(truth.log_evidence_error[0]), float(truth.log_evidence_std_error[0])
    return {
        "log_evidence": _number(truth.log_evidence[0]),
        "error": _number(bound + 2 * std_error),
        "error_bound": _number(bound),
        "std_error": _number(std_error),
        "grade": truth.grade,
        "method": truth.method,
        "reasons": [reason for reason in truth.reasons if reason],
    }


def _number(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None


def moments(truth: Truth, port: Posterior, draws: Draws | None) -> dict[str, dict[str, float | None]]:
    """Mean and sd of each of posteriordb's numbers, with their errors, beside those of the published draws.

    The error of a mean or sd is its standard error and the difference of two rules. `z_mean` and `z_sd` are differences
    in units of both sides' errors.
    """
    if not truth.points:
        return {}
    names = list(port.quantities(target_point(truth)))

    def stacked(latents: Latents) -> Tensor:
        found = port.quantities(latents)
        return torch.stack([found[name] for name in names], -1)

    mean = truth.expectation(stacked)
    square = truth.expectation(lambda latents: (stacked(latents) - mean.value[:, None]).square())
    sd = square.value.sqrt()
    table = {}
    for i, name in enumerate(names):
        of_mean = float(torch.hypot(mean.std_error, mean.error)[0, i])
        of_sd = float((torch.hypot(square.std_error, square.error) / (2 * sd))[0, i])
        row = {"mean": float(mean.value[0, i]), "sd": float(sd[0, i]), "mean_error": of_mean, "sd_error": of_sd}
        if draws is not None and name in draws:
            row |= _beside(row, draws[name])
        table[name] = {key: _number(value) for key, value in row.items()}
    return table


def target_point(truth: Truth) -> Latents:
    """The latents at one point of a truth, to see which numbers a posterior has."""
    return truth.target.constrain(truth.points[0].u[:, :1])[0]


def _beside(ours: dict[str, float], draws: np.ndarray) -> dict[str, float]:
    """The published mean and sd with Monte Carlo errors, and the differences from ours in units of both errors."""
    mean, sd = float(draws.mean()), float(draws.std())
    mcse = {which: float(array_stats.mcse(draws, method=which)) for which in ("mean", "sd")}
    return {
        "published_mean": mean,
        "published_sd": sd,
        "published_mean_error": mcse["mean"],
        "published_sd_error": mcse["sd"],
        "z_mean": (ours["mean"] - mean) / math.hypot(ours["mean_error"], mcse["mean"]),
        "z_sd": (ours["sd"] - sd) / math.hypot(ours["sd_error"], mcse["sd"]),
    }


def _other_route(port: Posterior, target: Target, draws: Draws | None) -> dict[str, Any] | None:
    if port.exact is not None:
        return {"by": port.exact_by, "log_evidence": port.exact(), "std_error": 0.0}
    if draws is None:
        return None
    value, std_error = bridge_evidence(unconstrained(port, target, draws), log_density(target))
    return {"by": BRIDGE, "log_evidence": value, "std_error": std_error}


def unconstrained(port: Posterior, target: Target, draws: Draws) -> np.ndarray:
    """Published draws in the coordinates of `target.constrain`, `(chains, draws, D)`."""
    shape = next(iter(draws.values())).shape
    flat = {name: torch.from_numpy(value.reshape(-1)) for name, value in draws.items()}
    latents = port.latents(flat) if port.latents is not None else _sites(target, flat)
    return target.unconstrain(latents)[0].numpy().reshape(*shape, target.dim)


def _sites(target: Target, flat: dict[str, Tensor]) -> Latents:
    found = {}
    for site in target.latents:
        names = by_name({site.name: torch.zeros(1, 1, *site.shape)})
        found[site.name] = torch.stack([flat[name] for name in names], -1).reshape(1, -1, *site.shape)
    return found


def log_density(target: Target) -> Any:
    """log p(x, z(u)) + log |dz/du| at points `(n, D)`, as a function of arrays."""

    def at(u: np.ndarray) -> np.ndarray:
        latents, log_jacobian = target.constrain(torch.from_numpy(u)[None])
        return (log_joint(target, latents) + log_jacobian)[0].numpy()

    return at


def main(argv: list[str] | None = None) -> int:
    """Prints the record of one posterior."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--posteriordb", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--bytes", type=float, required=True)
    asked = parser.parse_args(argv)
    limit_this_process(asked.seconds, asked.bytes)
    torch.set_num_threads(1)
    answer(record(PosteriorDatabase.at(asked.posteriordb), asked.name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
