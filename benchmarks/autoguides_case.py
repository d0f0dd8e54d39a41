"""One of posteriordb's posteriors and some guides: is the mean right, and, where it is not, why?

    python -m benchmarks.autoguides_case --posteriordb PATH --name NAME --guides AutoNormal --seconds 100 \\
        --bytes 8000000000

This is what `benchmarks.autoguides` runs in a process of its own for each posterior. Each guide has a process of its
own in turn, a copy of this one with the truth, and limits of its own.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import torch

import ppl_vi
from benchmarks.limited_process import answer, limit_this_process, used_seconds
from models.posteriordb import Posterior, PosteriorDatabase, posterior
from ppl_vi.metrics.scorecard import Scorecard
from ppl_vi.svi.result import Fit
from ppl_vi.target.sites import Latents
from ppl_vi.truth.result import Truth

# Baudart and Mandel (2021), after Stan's own tests: a mean is wrong where it is farther from the reference than both.
LARGEST_ERROR, SMALLEST_MATTERING = 0.3, 1e-4  # in standard deviations, and in the number's own unit
NUM_DRAWS = 10_000  # of the guide, as theirs
PATIENCE = 4.0  # seconds by the clock for each processor second of a limit


@dataclass(frozen=True)
class Reference:
    """Means and standard deviations by posteriordb's names."""

    mean: dict[str, float]
    sd: dict[str, float]


def reference(database: PosteriorDatabase, name: str, port: Posterior, truth: Truth) -> Reference:
    """That of the published draws, or, where posteriordb has none, of the truth."""
    draws = database.reference_draws(name)
    if draws is not None:
        return Reference({k: float(v.mean()) for k, v in draws.items()}, {k: float(v.std()) for k, v in draws.items()})
    points = truth.points[0]
    values = port.quantities(truth.target.constrain(points.u)[0])
    mean = {k: float(points.mean(v)[0]) for k, v in values.items()}
    return Reference(mean, {k: float(points.mean((v - mean[k]).square())[0]) ** 0.5 for k, v in values.items()})


def worst_error(port: Posterior, drawn: Latents, right: Reference) -> tuple[float, str]:
    """The largest |mean error| of draws, in standard deviations of the reference, and of which number it is.

    The draws are those of the first replica, `(1, R, S, *site.shape)`. An error that is too small to matter counts as
    0; a mean that is no number as infinite.
    """
    found = port.quantities({name: value[:, 0] for name, value in drawn.items()})
    errors = {}
    for name, mean in right.mean.items():
        if name in found:
            apart = abs(float(found[name].mean()) - mean)
            errors[name] = 0.0 if apart <= SMALLEST_MATTERING else apart / right.sd[name]
    worst = max(errors, key=lambda name: math.inf if math.isnan(errors[name]) else errors[name])
    return (math.inf if math.isnan(errors[worst]) else errors[worst]), worst


def record(port: Posterior, truth: Truth, guide: str, right: Reference, seed: int = 0) -> dict[str, Any]:
    """A fit with the default settings of the project and its success; a failure is scored and its cause told."""
    began = used_seconds()
    fit = ppl_vi.fit(truth.target, guide, seed=seed)
    fit_seconds = used_seconds() - began
    error, where = worst_error(port, fit.draw(NUM_DRAWS, seed), right)
    found = {
        "guide": guide,
        "fit": str(fit.status[0, 0]),
        "error": _number(error),
        "number": where,
        "success": error <= LARGEST_ERROR,
        "fit_seconds": fit_seconds,
    }
    if error > LARGEST_ERROR:
        found |= why(fit, ppl_vi.score(fit, truth), port, right, seed)
    return found | {"seconds": used_seconds() - began}


def why(fit: Fit, card: Scorecard, port: Posterior, right: Reference, seed: int) -> dict[str, Any]:
    """The gaps of a fit, the mean error of its family's best member, and which of them is to blame."""
    gaps: dict[str, float | None] = {
        name: _number(float(card.scores[name].value.ravel()[0]))
        for name in ("reverse_kl", "family_gap", "start_gap", "optimization_gap")
        if name in card.scores
    }
    of_best = None
    if card.best is not None and not fit.is_laplace:
        of_best = worst_error(port, fit.draw_at(card.best.theta[:, None], NUM_DRAWS, seed), right)[0]
    is_bound = card.best is not None and card.best.leaves_at_least(0)
    return {
        **gaps,
        "best_member_error": None if of_best is None else _number(of_best),
        "family_gap_is_bound": is_bound,
        "cause": cause(str(fit.status[0, 0]), fit.is_laplace, of_best, is_bound, gaps),
    }


def cause(status: str, is_laplace: bool, of_best: float | None, is_bound: bool, gaps: dict[str, float | None]) -> str:
    """Who is to blame where a mean is wrong.

    A fit that diverged is called so: its draws are of where it ended, and say nothing of the family. Else
    the family, where its best member's mean is as wrong as that, or the family or the start, where a better member may
    exist than the best one that was found; else the start, where the best optimum near the fit
    is farther from the best member than the fit is from that optimum; else the optimiser. A Laplace approximation has
    nothing to optimise: its mean is the mode.
    """
    if status == "diverged":
        return status
    if is_laplace:
        return "mode"
    if of_best is None:
        return "unknown"
    if of_best > LARGEST_ERROR:
        return "family or start" if is_bound else "family"
    return "start" if (gaps.get("start_gap") or 0.0) > (gaps.get("optimization_gap") or 0.0) else "optimiser"


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def limited(work: Callable[[], dict[str, Any]], guide: str, seconds: float, memory: float) -> dict[str, Any]:
    """What a function gives in a copy of this process that may take so much time and memory."""
    context = multiprocessing.get_context("fork")
    mine, its = context.Pipe(duplex=False)
    child = context.Process(target=_told, args=(work, its, seconds, memory))
    child.start()
    its.close()
    try:
        found = mine.recv() if mine.poll(PATIENCE * seconds) else {"reason": "out of time"}
    except EOFError:
        found = {"reason": "out of time or memory: its process ended without an answer"}
    child.kill()
    child.join()
    return found if "guide" in found else {"guide": guide, "success": False, "error": None, "cause": "failed", **found}


def _told(work: Callable[[], dict[str, Any]], to: Connection, seconds: float, memory: float) -> None:
    limit_this_process(used_seconds() + seconds, memory)
    try:
        to.send(work())
    except Exception as error:  # whatever a fit raises is this guide's answer
        to.send({"reason": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"})


def main(argv: list[str] | None = None) -> int:
    """Prints the records of one posterior."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--posteriordb", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--guides", nargs="+", required=True)
    parser.add_argument("--guide-seconds", type=float, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--bytes", type=float, required=True)
    asked = parser.parse_args(argv)
    torch.set_num_threads(1)
    limit_this_process(asked.seconds, asked.bytes)
    database = PosteriorDatabase.at(asked.posteriordb)
    port = posterior(database, asked.name)
    truth = ppl_vi.ground_truth(port.target(asked.name), seed=0)
    right = reference(database, asked.name, port, truth)
    found = [
        limited(partial(record, port, truth, guide, right), guide, asked.guide_seconds, asked.bytes)
        for guide in asked.guides
    ]
    answer({"grade": truth.grade, "guides": found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
