"""The data and the training of `benchmarks.vae`: one variational autoencoder for each guide family."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from benchmarks.vae_arguments import size
from ppl_vi import cli

if TYPE_CHECKING:
    import torch

    from models.images import Images
    from models.vae import VAE
    from ppl_vi.svi.minibatch import Trained, TrainingSettings

# Seeds the noise that makes pixels black or white, or fills the gaps between grey levels. The training data take this
# seed and the test data the next one; data that are binarised anew take the later ones, one in each epoch.
PREPARATION_SEED = 7


def load_data(arguments: argparse.Namespace) -> tuple[Images, torch.Tensor, torch.Tensor]:
    """The images as they were loaded, and their training and test data as the likelihood takes them.

    Raises:
        UsageError: there are no such data, or they don't suit the likelihood.
    """
    from models.images import binarise, dequantise, load

    try:
        images = load(arguments.data, data_dir=arguments.data_dir)
        if arguments.likelihood == "bernoulli":
            return images, binarise(images.train, PREPARATION_SEED), binarise(images.test, PREPARATION_SEED + 1)
        if images.levels is None:
            return images, images.train, images.test
        return (
            images,
            dequantise(images.train, images.levels, PREPARATION_SEED),
            dequantise(images.test, images.levels, PREPARATION_SEED + 1),
        )
    except ValueError as error:
        raise cli.UsageError(f"--data: {error}") from error


def train_guide(
    arguments: argparse.Namespace, guide: str, images: Images, train_x: torch.Tensor, test_x: torch.Tensor
) -> Trained:
    """Trains a VAE with a guide family, a progress bar and a checkpoint in `--out`.

    Args:
        arguments: those of the command line.
        guide: the family's name.
        images: the images as they were loaded, for data that are binarised anew in each epoch.
        train_x: the training data.
        test_x: the data on which training finds its best epoch.

    Raises:
        UsageError: training can't go on from the checkpoint, or came to a number that is not finite.
    """
    from models.images import binarise
    from ppl_vi.svi.minibatch import CheckpointError, train, warmed_up

    def binarised_anew(epoch: int) -> torch.Tensor:
        return binarise(images.train, PREPARATION_SEED + 2 + epoch).to(arguments.device)

    every_epoch = arguments.binarise == "epoch" and arguments.likelihood == "bernoulli"
    settings = _settings(arguments)
    vae = _vae(arguments, guide, train_x.shape[1])
    with cli.training_bar(guide, settings.num_epochs) as told:
        try:
            return train(
                vae.to(arguments.device),
                binarised_anew if every_epoch else train_x.to(arguments.device),
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

    num_epochs = size(arguments, "num_epochs")
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


def preparation(arguments: argparse.Namespace, images: Images) -> str:
    """What was done to the pixels before training, in words."""
    if arguments.likelihood == "gaussian" and images.levels is None:
        return "continuous in [0, 1], as given"
    if arguments.likelihood == "gaussian":
        return f"{images.levels} grey levels dequantised to [0, 1]"
    return "binarised once" if arguments.binarise == "fixed" else "binarised, those of training anew each epoch"
