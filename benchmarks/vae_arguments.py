"""The command line of `benchmarks.vae`, and the sizes that it stands for."""

from __future__ import annotations

import argparse
from pathlib import Path

from ppl_vi import cli

OUT = Path("results/vae")
GUIDES = ("diagonal", "full")
DATA, DATA_FILES = ("digits", "mnist"), (".npy", ".npz")  # what `models.images.load` takes
# What an option that counts something is where it isn't given, without and with --quick.
FULL = {"num_epochs": 150, "num_points": 500, "num_temperatures": 300}
QUICK = {"num_epochs": 30, "num_points": 40, "num_temperatures": 100}
# With more latents, quadrature over them takes too long: log p(x) is then bounded by annealed importance sampling.
MAX_CERTIFIED_LATENTS = 3


def size(arguments: argparse.Namespace, name: str) -> int:
    """The value of an option of `FULL`: as it was given, or the default."""
    return int(getattr(arguments, name) or (QUICK if arguments.quick else FULL)[name])


def check_data(name: str) -> None:
    """Refuses data of which there can be none, before anything is imported that could read them.

    Raises:
        UsageError: the name is unknown, or there is no such file.
    """
    if name in DATA:
        return
    if Path(name).suffix not in DATA_FILES:
        files = " or ".join(DATA_FILES)
        raise cli.UsageError(
            f"--data: unknown images '{name}'; there are {', '.join(DATA)}, and paths ending in {files}"
        )
    if not Path(name).exists():
        raise cli.UsageError(f"--data: there is no file '{name}'")


def sigma(text: str) -> float | None:
    """A positive number, or None for "learned"."""
    return None if text == "learned" else cli.positive(text)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    description = (
        "A variational autoencoder whose ELBO gap is split into what the guide's family and what its encoder can't do."
    )
    found = cli.Parser(prog="vae", description=description)
    _add_data_options(found)
    _add_model_options(found)
    _add_training_options(found)
    found.add_argument("--per-point", action="store_true", help="write points.json: one record a data point")
    cli.add_run_options(found, OUT, "few epochs and data points")
    cli.add_html(found)
    return found


def _add_data_options(found: argparse.ArgumentParser) -> None:
    found.add_argument(
        "--data", default="digits", metavar="NAME", help="digits, mnist, or a .npy or .npz file (digits)"
    )
    found.add_argument("--data-dir", type=Path, metavar="DIR", help="where MNIST's idx files are ($PPL_VI_DATA)")
    found.add_argument("--likelihood", choices=("bernoulli", "gaussian"), default="bernoulli", help="of a pixel")
    found.add_argument(
        "--binarise", choices=("fixed", "epoch"), default="fixed", help="Bernoulli data drawn once, or anew each epoch"
    )


def _add_model_options(found: argparse.ArgumentParser) -> None:
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


def _add_training_options(found: argparse.ArgumentParser) -> None:
    def add_size(name: str, least: int, what: str) -> None:
        text = what.format(f"{FULL[name]}, with --quick {QUICK[name]}")
        found.add_argument(f"--{name.replace('_', '-')}", type=cli.whole(least), metavar="N", help=text)

    add_size("num_epochs", 1, "epochs at most ({})")
    add_size("num_points", 1, "test points scored, and half as many of the training data ({})")
    add_size("num_temperatures", 2, f"of annealing beyond {MAX_CERTIFIED_LATENTS} latents ({{}})")
    found.add_argument("--batch-size", type=cli.whole(1), default=64, metavar="N", help="data points a step (64)")
    found.add_argument("--lr", type=cli.positive, default=1e-2, metavar="F", help="Adam's step size (0.01)")
    found.add_argument("--device", choices=cli.DEVICES, default="cpu", help="where to train (cpu)")
    found.add_argument("--resume", action="store_true", help="go on from the checkpoints in --out")
