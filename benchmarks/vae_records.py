"""The records of `benchmarks.vae`: one of each guide and split, and one of each data point."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from benchmarks.vae_arguments import MAX_CERTIFIED_LATENTS

if TYPE_CHECKING:
    import numpy as np

    from benchmarks.vae_scoring import Bounded
    from ppl_vi.report.decoder_plots import Portrait
    from ppl_vi.svi.minibatch import Trained

# The values of a data point in a scorecard that a record averages.
AVERAGED = (
    "log_evidence",
    "elbo",
    "total",
    "approximation",
    "amortization",
    "iwae_bias",
    "forward_kl",
    "total_variation",
    "prior_kl",
)
# The same where there are only bounds, each with the name of its standard error.
AVERAGED_BOUNDS = {
    "ais_lower": "ais_std_error",
    "iwae": "iwae_std_error",
    "elbo": "elbo_std_error",
    "total_lower": "total_lower_std_error",
    "prior_kl": "prior_kl_std_error",
}


def record(portrait: Portrait, arguments: argparse.Namespace) -> dict[str, Any]:
    """The record of one guide and split, in nats a data point; it averages the points whose truth is trusted."""
    card = portrait.card
    known = card.trusted
    figures = {name: _summary(getattr(card, name)[known]) for name in AVERAGED}
    families = {portrait.guide: (card.approximation, card.converged)} | {
        name: (value, card.converged_by_family[name]) for name, value in card.approximation_by_family.items()
    }
    return {
        **_heading(portrait.guide, portrait.split, portrait.trained, portrait.preparation, arguments),
        "num_points": len(card.log_evidence),
        "num_certified": int(card.trusted.sum()),
        "num_converged": int(card.converged.sum()),
        "log_evidence_error": _largest(card.log_evidence_error[known]),
        "reverse_kl_difference": _largest(abs(card.reverse_kl - card.total)[known]),
        "forward_kl_error": _largest(card.forward_kl_error[known]),
        "total_variation_error": _largest(card.total_variation_error[known]),
        **figures,
        "approximation_by_family": {
            name: {"num_converged": int(converged.sum()), "approximation": _summary(value[known])}
            for name, (value, converged) in families.items()
        },
        "num_particles": card.num_particles,
        "iwae_std_error": _std_error(card.iwae_std_error[known]),
        "active_units": card.num_active,
        "kl_per_latent": [float(value) for value in card.prior_kl_by_latent.mean(0)],
        **_training(portrait.trained, arguments),
    }


def bounds_record(bounded: Bounded, arguments: argparse.Namespace) -> dict[str, Any]:
    """The same record where there are bounds.

    It averages the points that have all bounds and, where log p(x) was computed, a trusted truth.
    """
    import numpy as np

    from ppl_vi.truth import Annealing

    job, card = bounded.job, bounded.card
    kept = card.finite if bounded.truth is None else card.finite & bounded.truth.trusted
    figures = {
        name: _summary(getattr(card, name)[kept], std_error=_std_error(getattr(card, error)[kept]))
        for name, error in AVERAGED_BOUNDS.items()
    }
    sandwiched = card.width[np.isfinite(card.width)]
    return {
        **_heading(job.guide, job.split, job.trained, job.preparation, arguments),
        "num_points": len(kept),
        "num_finite": int(card.finite.sum()),
        **dict.fromkeys(AVERAGED),
        "reason": _reason(bounded),
        **figures,
        **_beside_truth(bounded, kept),
        "sandwich_width": _summary(sandwiched),
        "num_chains": Annealing().num_chains,
        "num_temperatures": job.num_temperatures,
        "acceptance": float(card.acceptance[kept].mean()) if kept.any() else None,
        "effective_chains": float(card.effective_chains[kept].mean()) if kept.any() else None,
        "least_effective_chains": float(card.effective_chains[kept].min()) if kept.any() else None,
        "num_particles": card.num_particles,
        "active_units": card.num_active,
        **_training(job.trained, arguments),
    }


def _summary(values: np.ndarray, **more: Any) -> dict[str, Any] | None:
    """Mean with its interval, median and maximum of a value over data points; None where there are no points."""
    from ppl_vi.report.summary import summarize

    return asdict(summarize(values)) | more if len(values) else None


def _largest(values: np.ndarray) -> float | None:
    """The largest of the values; None where there are none."""
    return float(values.max()) if len(values) else None


def _std_error(values: np.ndarray) -> float | None:
    """The standard error of the mean of values with these standard errors, each independent of the others."""
    return float((values**2).sum() ** 0.5 / len(values)) if len(values) else None


def _reason(bounded: Bounded) -> str:
    """Why there are bounds in place of certified gaps."""
    if bounded.truth is None:
        return f"log p(x) is certified for at most {MAX_CERTIFIED_LATENTS} latents"
    return (
        f"{bounded.job.guide} is no mixture of Gaussians: its ELBO is a Monte Carlo mean, its best member not computed"
    )


def _beside_truth(bounded: Bounded, kept: np.ndarray) -> dict[str, Any]:
    """log p(x) and the total gap of the points whose truth is trusted; the ELBO still has a standard error."""
    if bounded.truth is None:
        return {}
    evidence, card = bounded.truth.log_evidence[kept], bounded.card
    return {
        "num_certified": int(bounded.truth.trusted.sum()),
        "log_evidence_error": _largest(bounded.truth.log_evidence_error[kept]),
        "log_evidence": _summary(evidence),
        "total": _summary(evidence - card.elbo[kept], std_error=_std_error(card.elbo_std_error[kept])),
    }


def _heading(
    guide: str, split: str, trained: Trained, preparation: str, arguments: argparse.Namespace
) -> dict[str, Any]:
    """The part of a record that says what was scored."""
    return {
        "data": arguments.data,
        "split": split,
        "guide": guide,
        "likelihood": arguments.likelihood,
        "preparation": preparation,
        "sigma": _sigma(trained.module),
        "latent_dim": arguments.latent_dim,
        "alpha": arguments.alpha,
        "alpha_warmup": arguments.alpha_warmup,
    }


def _training(trained: Trained, arguments: argparse.Namespace) -> dict[str, Any]:
    """The part of a record that says how the VAE was trained."""
    return {
        "best_epoch": trained.best_epoch,
        "num_epochs": len(trained.train_elbo),
        "stop_reason": trained.stop_reason,
        "train_seconds": round(trained.seconds, 1),
        "seed": arguments.seed,
        "versions": trained.versions,
    }


def _sigma(module: Any) -> float | None:
    """The Gaussian likelihood's standard deviation; None for another likelihood."""
    return None if module.likelihood == "bernoulli" else float(module.sigma)


def points(portrait: Portrait) -> Iterator[dict[str, Any]]:
    """One record of each data point."""
    card = portrait.card
    names = ("log_evidence", "elbo", "total", "approximation", "amortization", "reverse_kl")
    for index in range(len(card.log_evidence)):
        values = {name: float(getattr(card, name)[index]) for name in names}
        yield {
            "guide": portrait.guide,
            "split": portrait.split,
            "index": index,
            "certified": bool(card.trusted[index]),
            "converged": bool(card.converged[index]),
            **{name: value if math.isfinite(value) else str(value) for name, value in values.items()},
            "approximation_by_family": {
                name: float(value[index]) for name, value in card.approximation_by_family.items()
            },
        }


def bounded_points(bounded: Bounded) -> Iterator[dict[str, Any]]:
    """The same where there are bounds; None stands for a value that is not finite."""
    card = bounded.card
    for index in range(len(card.elbo)):
        values = {name: float(getattr(card, name)[index]) for pair in AVERAGED_BOUNDS.items() for name in pair}
        yield {
            "guide": bounded.job.guide,
            "split": bounded.job.split,
            "index": index,
            **{name: value if math.isfinite(value) else None for name, value in values.items()},
        }
