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
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ppl_vi import cli

if TYPE_CHECKING:
    import torch

    from models.images import Images
    from models.vae import VAE
    from ppl_vi.metrics.bounds import BoundsScorecard
    from ppl_vi.report.vae_plots import Portrait
    from ppl_vi.svi.amortized import Settings, Trained

T = TypeVar("T")

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
LEVELS = {"digits": 17, "mnist": 256}  # of grey, for dequantisation
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
    found.add_argument("--seed", type=cli.whole(0), default=0, metavar="N", help="of initial values and noise (0)")
    found.add_argument("--device", choices=cli.DEVICES, default="cpu", help="where to train (cpu)")
    found.add_argument("--resume", action="store_true", help="go on from the checkpoints in --out")
    found.add_argument("--quick", action="store_true", help="a look in seconds: few epochs and data points")
    found.add_argument("--out", type=Path, default=OUT, metavar="DIR", help=f"folder for what is written ({OUT})")
    found.add_argument("--json", metavar="FILE", help="the records here, too; - is standard output, and only them")
    found.add_argument("--per-point", action="store_true", help="write points.json: one record a data point")
    found.add_argument("--no-plots", action="store_true", help="write no figures")
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


@dataclass(frozen=True)
class Bounded:
    """What is known of a job whose log p(x) is not certified."""

    job: Job
    card: BoundsScorecard


def program(arguments: argparse.Namespace) -> int:
    """Trains, scores, shows."""
    from rich.console import Console

    from ppl_vi.guides.amortized import AMORTIZED

    if arguments.list_guides:
        Console().out(
            "\n".join(f"{name:10} {family(2).summary}" for name, family in AMORTIZED.items()), highlight=False
        )
        return 0
    _check(arguments)
    images, train_x, test_x = _data(arguments)
    trained = {guide: _train(arguments, guide, images, train_x, test_x) for guide in dict.fromkeys(arguments.guides)}
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
        )
        for guide, run in trained.items()
        for split, x, labels, size in splits
    ]
    portraits: list[Portrait] = []
    if arguments.latent_dim > CERTIFIED:
        bounded = _scored(jobs, bounds, arguments)
        records = [bounds_record(one, arguments) for one in bounded]
        _write(records, (point for one in bounded for point in bounded_points(one)), arguments)
    else:
        portraits = _scored(jobs, score, arguments)
        records = [record(portrait, arguments) for portrait in portraits]
        _write(records, (point for portrait in portraits for point in points(portrait)), arguments)
    if not arguments.no_plots:
        _figures(portraits, trained, arguments.out)
    return 0


def _check(arguments: argparse.Namespace) -> None:
    import torch

    from ppl_vi.guides.amortized import AMORTIZED

    for guide in arguments.guides:
        if guide not in AMORTIZED:
            raise cli.UsageError(f"unknown guide '{guide}'; there are {', '.join(AMORTIZED)}")
        if arguments.latent_dim > CERTIFIED:
            continue  # bounds ask for draws alone
        head = AMORTIZED[guide](arguments.latent_dim)
        try:
            head.components(torch.zeros(head.num_outputs))
        except NotImplementedError as error:
            raise cli.UsageError(f"{guide} can be trained but not scored: {error}") from error
    cli.check_device(arguments.device)
    cli.check_outputs(arguments)


def _data(arguments: argparse.Namespace) -> tuple[Images, torch.Tensor, torch.Tensor]:
    from models.images import binarise, dequantise, load

    levels = LEVELS.get(arguments.data, 256)
    try:
        images = load(arguments.data, data_dir=arguments.data_dir)
        if arguments.likelihood == "bernoulli":
            return images, binarise(images.train, BINARISE_SEED), binarise(images.test, BINARISE_SEED + 1)
        return (
            images,
            dequantise(images.train, levels, BINARISE_SEED),
            dequantise(images.test, levels, BINARISE_SEED + 1),
        )
    except ValueError as error:
        raise cli.UsageError(f"--data: {error}") from error


def _train(
    arguments: argparse.Namespace, guide: str, images: Images, train_x: torch.Tensor, test_x: torch.Tensor
) -> Trained:
    from models.images import binarise
    from ppl_vi.svi.amortized import CheckpointError, train

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
                alpha=arguments.alpha,
                checkpoint=arguments.out / f"{guide}.checkpoint",
                resume=arguments.resume,
                progress=told,
            )
        except (CheckpointError, FloatingPointError) as error:
            raise cli.UsageError(f"{guide}: {error}") from error


def _settings(arguments: argparse.Namespace) -> Settings:
    from ppl_vi.svi.amortized import Settings

    num_epochs = arguments.num_epochs or (QUICK if arguments.quick else FULL)["num_epochs"]
    return Settings(num_epochs=num_epochs, batch_size=arguments.batch_size, lr=arguments.lr, seed=arguments.seed)


def _vae(arguments: argparse.Namespace, guide: str, num_pixels: int) -> VAE:
    import torch

    from models.vae import VAE
    from ppl_vi.guides.amortized import AMORTIZED
    from ppl_vi.state import isolated

    with isolated(torch.float32, seed=arguments.seed):
        head = AMORTIZED[guide](arguments.latent_dim)
        return VAE(num_pixels, head, hidden=arguments.hidden, likelihood=arguments.likelihood, sigma=arguments.sigma)


def _scored(jobs: Sequence[Job], scoring: Callable[[Job], T], arguments: argparse.Namespace) -> list[T]:
    """What scoring gives for all jobs in their order, shared among processes."""
    import joblib

    parallel = joblib.Parallel(cli.num_workers(len(jobs), arguments.device), return_as="generator")
    return list(cli.followed(parallel(joblib.delayed(scoring)(job) for job in jobs), len(jobs), "scoring"))


def score(job: Job) -> Portrait:
    """Truth and gaps of one guide on one split, on one thread."""
    import torch

    from models.vae import target
    from ppl_vi.metrics.amortization import amortized_gaps
    from ppl_vi.report.vae_plots import Portrait
    from ppl_vi.truth import ground_truth

    torch.set_num_threads(1)
    module = job.trained.module.cpu().double()
    problems = target(module, job.x, name=f"VAE, {job.guide}")
    with torch.no_grad():
        local = module.encoder(job.x.double())
    card = amortized_gaps(problems, ground_truth(problems), module.head, local, seed=job.seed)
    return Portrait(
        job.guide,
        job.split,
        job.trained,
        module.head,
        problems,
        local,
        torch.from_numpy(card.best),
        card,
        job.labels,
        job.shape,
    )


def bounds(job: Job) -> Bounded:
    """Bounds on one guide's gap on one split and on as many simulated data points, on one thread."""
    import copy

    import torch

    from models.vae import simulate, target
    from ppl_vi.metrics.bounds import amortized_bounds
    from ppl_vi.truth import Annealing, annealed_bound, annealed_sandwich

    torch.set_num_threads(1)
    module = copy.deepcopy(job.trained.module).cpu().double()
    annealing = Annealing(num_temperatures=job.num_temperatures)
    problems = target(module, job.x, name=f"VAE, {job.guide}")
    x, z = simulate(module, len(job.x), seed=job.seed)
    sandwich = annealed_sandwich(target(module, x, name="simulated"), z, annealing, seed=job.seed)
    with torch.no_grad():
        local = module.encoder(job.x.double())
    bound = annealed_bound(problems, annealing, seed=job.seed)
    return Bounded(job, amortized_bounds(problems, bound, sandwich, module.head, local, seed=job.seed))


def record(portrait: Portrait, arguments: argparse.Namespace) -> dict[str, Any]:
    """One (guide, split), nats a data point; only certified points are averaged."""
    from ppl_vi.metrics.summary import summarize

    card = portrait.card
    figures = {name: asdict(summarize(getattr(card, name)[card.certified])) for name in FIGURES}
    return {
        **_heading(portrait.guide, portrait.split, portrait.trained, arguments),
        "num_points": len(card.log_evidence),
        "num_certified": int(card.certified.sum()),
        "num_converged": int(card.converged.sum()),
        "log_evidence_error": float(card.log_evidence_error[card.certified].max()),
        **figures,
        "num_particles": card.num_particles,
        "iwae_std_error": float((card.iwae_std_error[card.certified] ** 2).sum() ** 0.5 / card.certified.sum()),
        "active_units": card.num_active,
        "kl_per_latent": [float(value) for value in card.prior_kl_by_latent.mean(0)],
        **_training(portrait.trained, arguments),
    }


def bounds_record(bounded: Bounded, arguments: argparse.Namespace) -> dict[str, Any]:
    """The same where log p(x) is not certified; only points with finite bounds are averaged."""
    import numpy as np

    from ppl_vi.metrics.summary import summarize
    from ppl_vi.truth import Annealing

    job, card = bounded.job, bounded.card
    kept = card.finite
    figures = {
        name: asdict(summarize(getattr(card, name)[kept]))
        | {"std_error": float((getattr(card, error)[kept] ** 2).sum() ** 0.5 / kept.sum())}
        for name, error in BOUNDS.items()
    }
    sandwiched = card.width[np.isfinite(card.width)]
    return {
        **_heading(job.guide, job.split, job.trained, arguments),
        "num_points": len(kept),
        "num_finite": int(kept.sum()),
        **dict.fromkeys(FIGURES),
        "reason": f"log p(x) is certified for at most {CERTIFIED} latents",
        **figures,
        "sandwich_width": asdict(summarize(sandwiched)),
        "num_chains": Annealing().num_chains,
        "num_temperatures": job.num_temperatures,
        "acceptance": float(card.acceptance[kept].mean()),
        "effective_chains": float(card.effective_chains[kept].mean()),
        "least_effective_chains": float(card.effective_chains[kept].min()),
        "num_particles": card.num_particles,
        "active_units": card.num_active,
        **_training(job.trained, arguments),
    }


def _heading(guide: str, split: str, trained: Trained, arguments: argparse.Namespace) -> dict[str, Any]:
    """What a record is of."""
    return {
        "data": arguments.data,
        "split": split,
        "guide": guide,
        "likelihood": arguments.likelihood,
        "sigma": _sigma(trained.module),
        "latent_dim": arguments.latent_dim,
        "alpha": arguments.alpha,
    }


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
        yield {
            "guide": portrait.guide,
            "split": portrait.split,
            "index": index,
            "certified": bool(card.certified[index]),
            "converged": bool(card.converged[index]),
            **{name: float(getattr(card, name)[index]) for name in names},
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


def _write(records: list[dict[str, Any]], each: Iterable[dict[str, Any]], arguments: argparse.Namespace) -> None:
    from ppl_vi.report import files, table, vae_table

    text = files.to_json(records)
    files.write_text(arguments.out / "records.json", text)
    files.write_text(arguments.out / "table.txt", vae_table.as_text(records))
    if arguments.per_point:
        files.write_text(arguments.out / "points.json", files.to_json(list(each)))
    if arguments.json and arguments.json != "-":
        files.write_text(Path(arguments.json), text)
    vae_table.show(records, table.terminal(stderr=arguments.json == "-"))
    if arguments.json == "-":
        sys.stdout.write(text)


def _figures(portraits: list[Portrait], trained: dict[str, Trained], out: Path) -> None:
    from ppl_vi.report import files, vae_plots

    figures = {"training": vae_plots.training_curves(trained)}
    if portraits:
        figures["gap_histograms"] = vae_plots.gap_histograms(portraits)
        figures["gap_against_evidence"] = vae_plots.gap_against_evidence(portraits)
    for portrait in portraits:
        if portrait.split != "test":
            continue
        figures[f"reconstructions_{portrait.guide}"] = vae_plots.reconstructions(portrait)
        if portrait.target.dim >= 2:
            figures[f"latent_space_{portrait.guide}"] = vae_plots.latent_space(portrait)
            figures[f"manifold_{portrait.guide}"] = vae_plots.manifold(portrait)
        if portrait.target.dim == 2:
            figures[f"worst_points_{portrait.guide}"] = vae_plots.worst_points(portrait)
    for name, figure in figures.items():
        files.replace(out / f"{name}.png", figure.savefig)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns the exit code."""
    return cli.run(program, parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
