"""What `benchmarks.vae` measures: the gaps of one guide on one split of the data, certified or bounded."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from benchmarks.vae_arguments import FULL, GUIDES, MAX_CERTIFIED_LATENTS

if TYPE_CHECKING:
    import torch

    from ppl_vi.metrics.decoder.bounds import BoundsScorecard
    from ppl_vi.report.decoder_plots import Portrait
    from ppl_vi.svi.minibatch import Trained
    from ppl_vi.target.target import Target
    from ppl_vi.truth import Truth


@dataclass(frozen=True)
class Job:
    """One guide's trained VAE on one split of the data, to be scored.

    Attributes:
        guide: the family's name.
        split: "train" or "test".
        trained: the VAE and how it was trained.
        x: the data points, `(B, num_pixels)`.
        labels: what each image shows, `(B,)`, or None.
        shape: height and width of an image.
        seed: of all that is drawn.
        num_temperatures: of annealed importance sampling.
        preparation: what was done to the pixels, in words.
    """

    guide: str
    split: str
    trained: Trained
    x: torch.Tensor
    labels: Any
    shape: tuple[int, int]
    seed: int
    num_temperatures: int = FULL["num_temperatures"]
    preparation: str = ""


@dataclass(frozen=True)
class Bounded:
    """The bounds on the gaps of a job whose log p(x) is not certified, or whose guide is no mixture of Gaussians.

    Attributes:
        job: what was scored.
        card: the bounds.
        truth: the certified log p(x), where there are few enough latents.
    """

    job: Job
    card: BoundsScorecard
    truth: Truth | None = None


def score(job: Job) -> Portrait | Bounded:
    """Scores one guide on one split, on one thread and with a copy of the module in double precision."""
    import torch

    from models.vae import target

    torch.set_num_threads(1)
    job = replace(job, trained=replace(job.trained, module=copy.deepcopy(job.trained.module).cpu().double()))
    module = job.trained.module
    problems = target(module, job.x, name=f"VAE, {job.guide}")
    with torch.no_grad():
        local = module.encoder(job.x.double())
    exact = problems.dim <= MAX_CERTIFIED_LATENTS and module.head.is_mixture
    return gaps(job, problems, local) if exact else bounds(job, problems, local)


def gaps(job: Job, problems: Target, local: torch.Tensor) -> Portrait:
    """The gaps by certified truth, and the gaps of the best diagonal and full Gaussians with this decoder."""
    from ppl_vi.guides.amortized import AMORTIZED
    from ppl_vi.metrics.decoder.gaps import amortized_gaps
    from ppl_vi.report.decoder_plots import Portrait
    from ppl_vi.truth import ground_truth

    module = job.trained.module
    others = {name: AMORTIZED[name](problems.dim).double() for name in GUIDES if name != job.guide}
    card = amortized_gaps(problems, ground_truth(problems), module.head, local, others=others, seed=job.seed)
    head, trained = module.head, job.trained
    return Portrait(job.guide, job.split, trained, head, problems, local, card, job.labels, job.shape, job.preparation)


def bounds(job: Job, problems: Target, local: torch.Tensor) -> Bounded:
    """Bounds on the gap at each data point, and certified truth where there are few enough latents.

    Annealing bounds log p(x) from below. On as many data points that are drawn from the model it also bounds it from
    above, because there an exact draw from the posterior is known: the width between both shows how tight the bounds
    are.
    """
    from models.vae import simulate, target
    from ppl_vi.metrics.decoder.bounds import amortized_bounds
    from ppl_vi.truth import Annealing, annealed_bound, annealed_sandwich, ground_truth

    module, annealing = job.trained.module, Annealing(num_temperatures=job.num_temperatures)
    x, z = simulate(module, len(job.x), seed=job.seed)
    sandwich = annealed_sandwich(target(module, x, name="simulated"), z, annealing, seed=job.seed)
    bound = annealed_bound(problems, annealing, seed=job.seed)
    card = amortized_bounds(problems, bound, sandwich, module.head, local, seed=job.seed)
    return Bounded(job, card, ground_truth(problems) if problems.dim <= MAX_CERTIFIED_LATENTS else None)
