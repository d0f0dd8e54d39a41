"""A variational autoencoder whose ELBO gap is split into what the guide's family and what its encoder can't do.

    python -m benchmarks.vae [--quick] [--data digits|mnist|PATH] [--guides diagonal full ...]

Trains a VAE for each guide family, computes log p(x) of every scored data point by certified quadrature over the
latent, and finds each data point's best member of the family. Tables go to standard output; tables, records and figures
are written to results/vae/. With more than 3 latents log p(x) is bounded by annealed importance sampling instead.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppl_vi import cli
from ppl_vi.runtime.files import write_text

if TYPE_CHECKING:
    import numpy as np
    import torch

    from models.images import Images
    from models.vae import VAE
    from ppl_vi.metrics.decoder.bounds import BoundsScorecard
    from ppl_vi.report.decoder_plots import Portrait
    from ppl_vi.svi.minibatch import Trained, TrainingSettings
    from ppl_vi.target.target import Target
    from ppl_vi.truth import Truth


OUT = Path("results/vae")
GUIDES = ("diagonal", "full")
FULL = {"num_epochs": 150, "num_points": 500}
QUICK = {"num_epochs": 30, "num_points": 40}
NUM_TEMPERATURES = {"full": 300, "quick": 100}  # of annealed importance sampling
CERTIFIED = 3  # latents at most
FIGURES = (
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
BOUNDS = {  # and their standard errors
    "ais_lower": "ais_std_error",
    "iwae": "iwae_std_error",
    "elbo": "elbo_std_error",
    "total_lower": "total_lower_std_error",
    "prior_kl": "prior_kl_std_error",
}
BINARISE_SEED = 7


def sigma(text: str) -> float | None:
    """A positive number, or "learned"."""
    return None if text == "learned" else cli.positive(text)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = cli.Parser(prog="vae", description=(__doc__ or "").splitlines()[0])
    found.add_argument(
        "--data", default="digits", metavar="NAME", help="digits, mnist, or a .npy or .npz file (digits)"
    )
    found.add_argument("--data-dir", type=Path, metavar="DIR", help="where MNIST's idx files are ($PPL_VI_DATA)")
    found.add_argument("--likelihood", choices=("bernoulli", "gaussian"), default="bernoulli", help="of a pixel")
    found.add_argument(
        "--binarise", choices=("fixed", "epoch"), default="fixed", help="Bernoulli data drawn once, or anew each epoch"
    )
    found.add_argument(
        "--sigma", type=sigma, default=0.1, metavar="S", help="of the Gaussian likelihood, or learned (0.1)"
    )
    found.add_argument("--latent-dim", type=cli.whole(1), default=2, metavar="D", help="latents (2; above 3 bounds)")
    found.add_argument("--guides", nargs="+", default=GUIDES, metavar="NAME", help=f"families ({', '.join(GUIDES)})")
    found.add_argument("--list-guides", action="store_true", help="list the families and exit")
    found.add_argument("--alpha", type=cli.positive, default=1.0, metavar="A", help="weight of the KL in training (1)")
    text = "epochs over which the KL's weight grows linearly from 0 to alpha (0)"
    found.add_argument("--alpha-warmup", type=cli.whole(0), default=0, metavar="N", help=text)
    found.add_argument(
        "--hidden", type=cli.whole(1), nargs="*", default=(64, 64), metavar="N", help="layer widths (64 64)"
    )
    for name in FULL:
        text = f"{FULL[name]}, with --quick {QUICK[name]}"
        what = "epochs at most" if name == "num_epochs" else "test points scored, and half as many of the training data"
        found.add_argument(f"--{name.replace('_', '-')}", type=cli.whole(1), metavar="N", help=f"{what} ({text})")
    text = "of annealing beyond {} latents ({full}, with --quick {quick})".format(CERTIFIED, **NUM_TEMPERATURES)
    found.add_argument("--num-temperatures", type=cli.whole(2), metavar="N", help=text)
    found.add_argument("--batch-size", type=cli.whole(1), default=64, metavar="N", help="data points a step (64)")
    found.add_argument("--lr", type=cli.positive, default=1e-2, metavar="F", help="Adam's step size (0.01)")
    found.add_argument("--device", choices=cli.DEVICES, default="cpu", help="where to train (cpu)")
    found.add_argument("--resume", action="store_true", help="go on from the checkpoints in --out")
    found.add_argument("--per-point", action="store_true", help="write points.json: one record a data point")
    cli.add_run_options(found, OUT, "few epochs and data points")
    return found


@dataclass(frozen=True)
class Job:
    """One guide's trained VAE on one split of the data."""

    guide: str
    split: str
    trained: Trained
    x: torch.Tensor
    labels: Any
    shape: tuple[int, int]
    seed: int
    num_temperatures: int = NUM_TEMPERATURES["full"]
    preparation: str = ""


@dataclass(frozen=True)
class Bounded:
    """What is known of a job whose log p(x) is not certified, or whose guide's ELBO takes draws."""

    job: Job
    card: BoundsScorecard
    truth: Truth | None = None


@dataclass(frozen=True, eq=False)
class Scored:
    """A job that is done, and what is told of it."""

    record: dict[str, Any]
    points: tuple[dict[str, Any], ...]
    portrait: Portrait | None = None


def program(arguments: argparse.Namespace) -> int:
    """Trains, scores, shows."""
    from rich.console import Console

    from ppl_vi.guides.amortized import AMORTIZED
    from ppl_vi.runtime.processes import wake

    if arguments.list_guides:
        Console().out(
            "\n".join(f"{name:10} {family(2).summary}" for name, family in AMORTIZED.items()), highlight=False
        )
        return 0
    guides = _checked(arguments)
    images, train_x, test_x = _data(arguments)
    try:
        wake(cli.num_workers(2 * len(guides), arguments.device), "ppl_vi.report.decoder_plots")
        trained = {guide: _train(arguments, guide, images, train_x, test_x) for guide in guides}
    except KeyboardInterrupt:
        print(f"interrupted while training: --resume goes on from the checkpoints in {arguments.out}", file=sys.stderr)
        return cli.INTERRUPTED
    num = arguments.num_points or (QUICK if arguments.quick else FULL)["num_points"]
    splits = (
        ("train", train_x, images.train_labels, (num + 1) // 2),
        ("test", test_x, images.test_labels, num),
    )
    num_temperatures = arguments.num_temperatures or NUM_TEMPERATURES["quick" if arguments.quick else "full"]
    jobs = [
        Job(
            guide,
            split,
            run,
            x[:size],
            None if labels is None else labels[:size].numpy(),
            images.shape,
            arguments.seed,
            num_temperatures,
            _preparation(arguments, images),
        )
        for guide, run in trained.items()
        for split, x, labels, size in splits
    ]
    finished: list[Scored] = []
    try:
        for finished in _scored(jobs, arguments):
            _write(finished, arguments)
    except KeyboardInterrupt:
        if finished:
            _write(finished, arguments)  # the last time may have been cut short
            _show(finished, arguments)
        return cli.interrupted(len(finished), len(jobs), "guides and splits were scored", arguments)
    _show(finished, arguments)
    portraits = [one.portrait for one in finished if one.portrait is not None]
    return cli.drawn(lambda: _figures(portraits, trained, arguments.out), arguments)


def _checked(arguments: argparse.Namespace) -> list[str]:
    """The families asked for, once all arguments have been found good."""
    from ppl_vi.guides.amortized import AMORTIZED

    guides = cli.guides_among(arguments.guides, AMORTIZED)
    cli.check_device(arguments.device)
    cli.check_outputs(arguments)
    return guides


def _data(arguments: argparse.Namespace) -> tuple[Images, torch.Tensor, torch.Tensor]:
    from models.images import binarise, dequantise, load

    try:
        images = load(arguments.data, data_dir=arguments.data_dir)
        if arguments.likelihood == "bernoulli":
            return images, binarise(images.train, BINARISE_SEED), binarise(images.test, BINARISE_SEED + 1)
        if images.levels is None:
            return images, images.train, images.test
        return (
            images,
            dequantise(images.train, images.levels, BINARISE_SEED),
            dequantise(images.test, images.levels, BINARISE_SEED + 1),
        )
    except ValueError as error:
        raise cli.UsageError(f"--data: {error}") from error


def _train(
    arguments: argparse.Namespace, guide: str, images: Images, train_x: torch.Tensor, test_x: torch.Tensor
) -> Trained:
    from models.images import binarise
    from ppl_vi.svi.minibatch import CheckpointError, train, warmed_up

    def anew(epoch: int) -> torch.Tensor:
        return binarise(images.train, BINARISE_SEED + 2 + epoch).to(arguments.device)

    fresh = arguments.binarise == "epoch" and arguments.likelihood == "bernoulli"
    settings = _settings(arguments)
    vae = _vae(arguments, guide, train_x.shape[1])
    with cli.training_bar(guide, settings.num_epochs) as told:
        try:
            return train(
                vae.to(arguments.device),
                anew if fresh else train_x.to(arguments.device),
                test_x.to(arguments.device),
                settings,
                alpha=warmed_up(arguments.alpha, arguments.alpha_warmup),
                checkpoint=arguments.out / f"{guide}.checkpoint",
                resume=arguments.resume,
                progress=told,
            )
        except (CheckpointError, FloatingPointError) as error:
            raise cli.UsageError(f"{guide}: {error}") from error


def _settings(arguments: argparse.Namespace) -> TrainingSettings:
    from ppl_vi.svi.minibatch import TrainingSettings

    num_epochs = arguments.num_epochs or (QUICK if arguments.quick else FULL)["num_epochs"]
    return TrainingSettings(
        num_epochs=num_epochs, batch_size=arguments.batch_size, lr=arguments.lr, seed=arguments.seed
    )


def _vae(arguments: argparse.Namespace, guide: str, num_pixels: int) -> VAE:

    from models.vae import VAE
    from ppl_vi.guides.amortized import AMORTIZED
    from ppl_vi.svi.minibatch import untrained

    def build() -> VAE:
        head = AMORTIZED[guide](arguments.latent_dim)
        return VAE(num_pixels, head, hidden=arguments.hidden, likelihood=arguments.likelihood, sigma=arguments.sigma)

    module: VAE = untrained(build, seed=arguments.seed)
    return module


def _scored(jobs: Sequence[Job], arguments: argparse.Namespace) -> Iterator[list[Scored]]:
    """What is finished, in the jobs' order, after each; they are shared among processes."""
    from ppl_vi.runtime.processes import shared

    done: dict[tuple[str, str], Scored] = {}
    results = shared(score, jobs, cli.num_workers(len(jobs), arguments.device))
    for result in cli.followed(results, len(jobs), "scoring"):
        if isinstance(result, Bounded):
            key = result.job.guide, result.job.split
            done[key] = Scored(bounds_record(result, arguments), tuple(bounded_points(result)))
        else:
            key = result.guide, result.split
            done[key] = Scored(record(result, arguments), tuple(points(result)), result)
        yield [done[job.guide, job.split] for job in jobs if (job.guide, job.split) in done]


def score(job: Job) -> Portrait | Bounded:
    """What can be said of one guide on one split, on one thread and in double precision; the job stays as it is."""
    import copy

    import torch

    from models.vae import target

    torch.set_num_threads(1)
    job = replace(job, trained=replace(job.trained, module=copy.deepcopy(job.trained.module).cpu().double()))
    module = job.trained.module
    problems = target(module, job.x, name=f"VAE, {job.guide}")
    with torch.no_grad():
        local = module.encoder(job.x.double())
    exact = problems.dim <= CERTIFIED and module.head.is_mixture
    return gaps(job, problems, local) if exact else bounds(job, problems, local)


def gaps(job: Job, problems: Target, local: torch.Tensor) -> Portrait:
    """Certified truth, exact gaps, and how far the best diagonal and full Gaussians get with this decoder."""
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
    """Bounds on the gap there and on as many simulated data points; beside certified truth where there is one."""
    from models.vae import simulate, target
    from ppl_vi.metrics.decoder.bounds import amortized_bounds
    from ppl_vi.truth import Annealing, annealed_bound, annealed_sandwich, ground_truth

    module, annealing = job.trained.module, Annealing(num_temperatures=job.num_temperatures)
    x, z = simulate(module, len(job.x), seed=job.seed)
    sandwich = annealed_sandwich(target(module, x, name="simulated"), z, annealing, seed=job.seed)
    bound = annealed_bound(problems, annealing, seed=job.seed)
    card = amortized_bounds(problems, bound, sandwich, module.head, local, seed=job.seed)
    return Bounded(job, card, ground_truth(problems) if problems.dim <= CERTIFIED else None)


def record(portrait: Portrait, arguments: argparse.Namespace) -> dict[str, Any]:
    """One (guide, split), nats a data point; only points whose truth is trusted are averaged."""
    card = portrait.card
    known = card.trusted
    figures = {name: _summary(getattr(card, name)[known]) for name in FIGURES}
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
    """The same of bounds; only points that have them all, and a trusted truth where there is one, are averaged."""
    import numpy as np

    from ppl_vi.truth import Annealing

    job, card = bounded.job, bounded.card
    kept = card.finite if bounded.truth is None else card.finite & bounded.truth.trusted
    figures = {
        name: _summary(getattr(card, name)[kept], std_error=_std_error(getattr(card, error)[kept]))
        for name, error in BOUNDS.items()
    }
    sandwiched = card.width[np.isfinite(card.width)]
    return {
        **_heading(job.guide, job.split, job.trained, job.preparation, arguments),
        "num_points": len(kept),
        "num_finite": int(card.finite.sum()),
        **dict.fromkeys(FIGURES),
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
    """Of a figure over data points; None where there are none to average."""
    from ppl_vi.report.summary import summarize

    return asdict(summarize(values)) | more if len(values) else None


def _largest(values: np.ndarray) -> float | None:
    return float(values.max()) if len(values) else None


def _std_error(values: np.ndarray) -> float | None:
    """Of the mean of figures with these standard errors."""
    return float((values**2).sum() ** 0.5 / len(values)) if len(values) else None


def _reason(bounded: Bounded) -> str:
    """Why there are bounds."""
    if bounded.truth is None:
        return f"log p(x) is certified for at most {CERTIFIED} latents"
    return (
        f"{bounded.job.guide} is no mixture of Gaussians: its ELBO is a Monte Carlo mean, its best member not computed"
    )


def _beside_truth(bounded: Bounded, kept: np.ndarray) -> dict[str, Any]:
    """log p(x) and the whole gap where the truth is trusted, though the ELBO has a sampling error."""
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
    """What a record is of."""
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


def _preparation(arguments: argparse.Namespace, images: Images) -> str:
    """What was done to the pixels."""
    if arguments.likelihood == "gaussian" and images.levels is None:
        return "continuous in [0, 1], as given"
    if arguments.likelihood == "gaussian":
        return f"{images.levels} grey levels dequantised to [0, 1]"
    return "binarised once" if arguments.binarise == "fixed" else "binarised, those of training anew each epoch"


def _training(trained: Trained, arguments: argparse.Namespace) -> dict[str, Any]:
    """How it came about."""
    return {
        "best_epoch": trained.best_epoch,
        "num_epochs": len(trained.train_elbo),
        "stop_reason": trained.stop_reason,
        "train_seconds": round(trained.seconds, 1),
        "seed": arguments.seed,
        "versions": trained.versions,
    }


def _sigma(module: Any) -> float | None:
    return None if module.likelihood == "bernoulli" else float(module.sigma)


def points(portrait: Portrait) -> Iterator[dict[str, Any]]:
    """One record a data point."""
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
    """The same of bounds; null where one is not finite."""
    card = bounded.card
    for index in range(len(card.elbo)):
        values = {name: float(getattr(card, name)[index]) for pair in BOUNDS.items() for name in pair}
        yield {
            "guide": bounded.job.guide,
            "split": bounded.job.split,
            "index": index,
            **{name: value if math.isfinite(value) else None for name, value in values.items()},
        }


def _write(finished: Sequence[Scored], arguments: argparse.Namespace) -> None:
    from ppl_vi.report import files

    cli.write_records([one.record for one in finished], arguments)
    if arguments.per_point:
        each = [point for one in finished for point in one.points]
        write_text(arguments.out / "points.json", files.to_json(each))


def _show(finished: Sequence[Scored], arguments: argparse.Namespace) -> None:
    from ppl_vi.report import decoder_table

    records = [one.record for one in finished]
    write_text(arguments.out / "table.txt", decoder_table.as_text(records))
    cli.show_records(records, arguments, decoder_table.show)


def _figures(portraits: list[Portrait], trained: dict[str, Trained], out: Path) -> None:
    from ppl_vi.report import decoder_plots, files

    figures = {"training": decoder_plots.training_curves(trained)}
    if portraits:
        figures["gap_histograms"] = decoder_plots.gap_histograms(portraits)
        figures["gap_against_evidence"] = decoder_plots.gap_against_evidence(portraits)
    for portrait in portraits:
        if portrait.split != "test":
            continue
        figures[f"reconstructions_{portrait.guide}"] = decoder_plots.reconstructions(portrait)
        if portrait.target.dim >= 2:
            figures[f"latent_space_{portrait.guide}"] = decoder_plots.latent_space(portrait)
            figures[f"manifold_{portrait.guide}"] = decoder_plots.manifold(portrait)
        if portrait.target.dim == 2:
            figures[f"worst_points_{portrait.guide}"] = decoder_plots.worst_points(portrait)
    for name, figure in figures.items():
        files.write_figure(out / f"{name}.png", figure)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns the exit code."""
    return cli.run(program, parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
