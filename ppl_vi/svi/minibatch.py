"""Trains a model with learnable parameters and its amortized guide on mini-batches, by Pyro's `Trace_ELBO`.

The loop is the one that Pyro documents for a single optimiser over all parameters: `Trace_ELBO.differentiable_loss` and
`torch.optim.Adam`. A checkpoint holds the parameters, the optimiser, the random state and the history, so that a run
that was interrupted goes on to the same bits, and a digest of all that (`ppl_vi.runtime.archives`), which is checked
before any of it is used.
"""

from __future__ import annotations

import copy
import hashlib
import io
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyro.poutine as poutine
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from ppl_vi.runtime.archives import DamagedFileError, content_of, sealed, unsealed
from ppl_vi.runtime.files import replace_file
from ppl_vi.runtime.provenance import versions
from ppl_vi.target.isolation import isolated, own_randomness

CHECKPOINT_FORMAT = 3
CHECKPOINT_PARTS = {"format", "settings", "data", "run", "module", "optimiser", "random"}
# Where the held-out ELBO is computed anew from a checkpoint and differs from the stored one by more than this share,
# the model or the data are others: rounding in another order, in single precision, changes it by less.
HELD_OUT_TOLERANCE = 1e-4
HELD_OUT_PARTICLES = 8
# The held-out ELBO is estimated on the same noise after every epoch, so that epochs are compared on equal terms.
HELD_OUT_SEED = 12_345

Alpha = Callable[[int], float]
Epoch = Callable[[int, int, float, float], None]


class Amortized(Protocol):
    """A module that holds a Pyro model and guide of a mini-batch, such as `models.vae.VAE`."""

    def model(self, x: Tensor, num_data: int | None = None, alpha: float = 1.0) -> Any:
        """The model of a mini-batch `(M, ...)` that stands for `num_data` points, the KL to the prior times `alpha`."""

    def guide(self, x: Tensor, num_data: int | None = None, alpha: float = 1.0) -> Any:
        """The guide of the same mini-batch."""


def untrained(build: Callable[[], Any], *, seed: int, dtype: torch.dtype = torch.float32) -> Any:
    """Builds a module, such as an `Amortized` with its initial weights, in one dtype and from one seed."""
    with isolated(dtype, seed):
        return build()


def isolated_module(module: Any, seed: int) -> AbstractContextManager[None]:
    """Isolates the code of an `Amortized`, which has no target, in its own dtype; see `ppl_vi.target.isolation`."""
    return isolated(next(module.parameters()).dtype, seed)


class CheckpointError(ValueError):
    """A checkpoint can't be used; the message says why."""


@dataclass(frozen=True)
class TrainingSettings:
    """How a model is trained.

    Attributes:
        num_epochs: the most passes over the data.
        batch_size: data points in each step.
        lr: Adam's step size, which falls to a tenth over the epochs along half a cosine.
        num_particles: draws of the guide for each data point and step.
        patience: after so many epochs without a better held-out ELBO training stops.
        seed: of the order of the data and the noise.
    """

    num_epochs: int = 300
    batch_size: int = 64
    lr: float = 2e-3
    num_particles: int = 1
    patience: int = 60
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_epochs", "batch_size", "num_particles", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.lr < float("inf"):
            raise ValueError(f"lr must be positive and finite, got {self.lr}")

    def rate(self, epoch: int) -> float:
        """The step size of an epoch."""
        return float(self.lr * (0.1 + 0.9 * (1 + np.cos(np.pi * epoch / self.num_epochs)) / 2))


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained module and how it was trained.

    Attributes:
        module: a copy of the module with the parameters of the best held-out ELBO, none of which requires a gradient.
        train_elbo: the ELBO of a data point, averaged over each epoch's mini-batches while the parameters moved, nats,
            `(E,)`.
        held_out_elbo: the ELBO of a held-out data point at each epoch's end, at alpha = 1, nats, `(E,)`.
        best_epoch: the epoch after which the module had these parameters, counted from 0.
        stop_reason: why training stopped.
        seconds: how long training took, in all processes together.
        settings: how it was trained.
        versions: the versions of the software.
    """

    module: Any
    train_elbo: np.ndarray
    held_out_elbo: np.ndarray
    best_epoch: int
    stop_reason: str
    seconds: float
    settings: TrainingSettings
    versions: dict[str, str]


@dataclass
class _Progress:
    """Where training stands; a checkpoint holds these fields by name.

    Attributes:
        epoch: how many epochs have been taken.
        train, held_out: the ELBO of a data point in each epoch, nats.
        alpha: the weight of the KL in each epoch.
        best: the parameters of the best held-out ELBO so far.
        stop_reason: why training has stopped, or "".
        seconds: how long it has taken, in all processes together.
    """

    epoch: int = 0
    train: list[float] = field(default_factory=list)
    held_out: list[float] = field(default_factory=list)
    alpha: list[float] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    stop_reason: str = ""
    seconds: float = 0.0

    @property
    def best_epoch(self) -> int:
        return int(np.argmax(self.held_out))


def warmed_up(alpha: float, num_epochs: int) -> Alpha:
    """A weight of the KL that grows linearly from 0 and is `alpha` from the `num_epochs`-th epoch on.

    It is alpha min(1, (epoch + 1) / num_epochs), with epochs counted from 0, so it is always positive, as a scale in a
    Pyro model has to be.

    Source: Sønderby et al. (2016), Ladder variational autoencoders.
    """
    return lambda epoch: alpha if epoch + 1 >= num_epochs else alpha * (epoch + 1) / num_epochs


def train(
    module: nn.Module,
    data: Tensor | Callable[[int], Tensor],
    held_out: Tensor,
    settings: TrainingSettings | None = None,
    *,
    alpha: Alpha | float = 1.0,
    checkpoint: Path | None = None,
    resume: bool = False,
    progress: Epoch | None = None,
) -> Trained:
    """Maximises the ELBO over the parameters of the model and the guide; the module that is given stays as it is.

    With a checkpoint, the whole state is written after every epoch, and a resumed run ends at the same bits as one that
    was never interrupted.

    Args:
        module: an `Amortized`.
        data: the training data `(N, ...)`, or a function that gives them for each epoch, counted from 0, as where they
            are binarised anew each time.
        held_out: the held-out data `(M, ...)`, whose ELBO says when to stop.
        settings: how to train.
        alpha: the weight of the KL to the prior, a number or a function of the epoch. The held-out ELBO is at
            alpha = 1.
        checkpoint: the file that holds the checkpoint.
        resume: go on from the checkpoint if there is one.
        progress: is called after each epoch with its number, the largest possible number, and the epoch's training and
            held-out ELBO.

    Raises:
        CheckpointError: the checkpoint is damaged or no checkpoint, or of other settings, data, model or alpha.
        FloatingPointError: the ELBO is no longer finite; the message says when.
    """
    began = time.perf_counter()
    settings = settings or TrainingSettings()
    batches = data if callable(data) else lambda epoch: data
    weight = (lambda epoch: float(alpha(epoch))) if callable(alpha) else lambda epoch: float(alpha)
    training = _Training(copy.deepcopy(module), batches, held_out, settings, weight)
    with isolated_module(training.module, settings.seed), warnings.catch_warnings():
        # Pyro warns of a loss that is not finite; here it is an error that names the epoch
        warnings.filterwarnings("ignore", message="Encountered (NaN|\\+?-?inf)")
        file = None if checkpoint is None else _Checkpoint(checkpoint, _checksums(batches, held_out))
        if file is not None and resume and file.path.exists():
            file.load_into(training)
        run = training.progress
        began -= run.seconds  # of the processes before
        while not run.stop_reason:
            training.take_epoch()
            run.seconds = time.perf_counter() - began
            if file is not None:
                file.save(training)
            if progress:
                progress(run.epoch, settings.num_epochs, run.train[-1], run.held_out[-1])
    training.module.load_state_dict(run.best)
    return Trained(
        module=training.module.requires_grad_(False),
        train_elbo=np.array(run.train),
        held_out_elbo=np.array(run.held_out),
        best_epoch=run.best_epoch,
        stop_reason=run.stop_reason,
        seconds=run.seconds,
        settings=settings,
        versions=versions(),
    )


def gradient_step(
    module: Any, elbo: Trace_ELBO, optimiser: Optimizer, x: Tensor, *, num_data: int | None = None, alpha: float = 1.0
) -> Tensor:
    """One step of an optimiser along the gradient of a mini-batch's ELBO.

    Args:
        module: an `Amortized`.
        elbo: estimates the ELBO.
        optimiser: of the module's parameters.
        x: the mini-batch, `(M, ...)`.
        num_data: how many data points `N` the mini-batch stands for; by default `M`.
        alpha: the weight of the KL to the prior.

    Returns:
        The loss of a data point at the parameters before the step, `()`, nats.

    Raises:
        FloatingPointError: the loss is not finite; no step was taken.
    """
    num_data = len(x) if num_data is None else num_data
    optimiser.zero_grad()
    loss = elbo.differentiable_loss(module.model, module.guide, x, num_data, alpha) / num_data
    if not bool(loss.isfinite()):
        raise FloatingPointError(f"the loss is {float(loss.detach())}")
    loss.backward()
    optimiser.step()
    return loss.detach()


class _Training:
    """A module in training: its optimiser, its data and where it stands.

    Args:
        module: an `Amortized`, which is trained in place.
        batches: gives the training data of an epoch.
        held_out: the held-out data.
        settings: how to train.
        weight: gives the weight of the KL in an epoch.
    """

    def __init__(
        self,
        module: Any,
        batches: Callable[[int], Tensor],
        held_out: Tensor,
        settings: TrainingSettings,
        weight: Alpha,
    ) -> None:
        self.module, self.settings, self.weight = module, settings, weight
        self.optimiser = Adam(module.parameters(), lr=settings.lr)
        self.progress = _Progress()
        self._batches, self._held_out = batches, held_out
        self._elbo = Trace_ELBO(num_particles=settings.num_particles)

    def take_epoch(self) -> None:
        """Takes one more epoch, and notes its ELBOs, the best parameters, and whether training is over.

        Raises:
            FloatingPointError: an ELBO is not finite.
        """
        run = self.progress
        run.alpha.append(self.weight(run.epoch))
        run.train.append(self._train_elbo(self._batches(run.epoch)))
        run.held_out.append(self.held_out_elbo())
        if not np.isfinite(run.held_out[-1]):
            raise FloatingPointError(f"the held-out ELBO is {run.held_out[-1]} after epoch {run.epoch + 1}")
        if run.best_epoch == run.epoch:
            run.best = {name: value.detach().clone() for name, value in self.module.state_dict().items()}
        run.epoch += 1
        run.stop_reason = self._stop_reason()

    def _train_elbo(self, data: Tensor) -> float:
        """Takes a step on each mini-batch; the mean of their ELBOs while the parameters moved, a data point, nats."""
        epoch, total = self.progress.epoch, 0.0
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings.rate(epoch)
        for index in torch.randperm(len(data)).split(self.settings.batch_size):
            x, alpha = data[index], self.progress.alpha[-1]
            try:
                loss = gradient_step(self.module, self._elbo, self.optimiser, x, num_data=len(data), alpha=alpha)
            except FloatingPointError as error:
                hint = f"try a smaller lr than {self.settings.lr:g}"
                raise FloatingPointError(f"{error} in epoch {epoch}: {hint}") from error
            total -= float(loss) * len(index) / len(data)
        return total

    def held_out_elbo(self) -> float:
        """The ELBO of a held-out data point at alpha = 1, on the same noise each time, nats."""
        with own_randomness(HELD_OUT_SEED), torch.no_grad(), poutine.block():
            loss = Trace_ELBO(num_particles=HELD_OUT_PARTICLES).loss(
                self.module.model, self.module.guide, self._held_out
            )
        return -loss / len(self._held_out)

    def _stop_reason(self) -> str:
        run, settings = self.progress, self.settings
        waited = run.epoch - 1 - run.best_epoch
        if waited >= settings.patience:
            return f"no better held-out ELBO for {waited} epochs"
        return f"all {settings.num_epochs} epochs taken" if run.epoch >= settings.num_epochs else ""


def _checksums(batches: Callable[[int], Tensor], held_out: Tensor) -> list[str]:
    """Checksums of the first epoch's training data and of the held-out data, by which a checkpoint knows them again."""
    with torch.random.fork_rng(devices=[]):  # the data may be drawn, and are to be drawn the same in the first epoch
        data = batches(0), held_out
    return [hashlib.sha256(part.detach().cpu().numpy().tobytes()).hexdigest() for part in data]


@dataclass(frozen=True)
class _Checkpoint:
    """The file that holds the whole state of a training.

    Attributes:
        path: where it is.
        checksums: of the data that the training is given.
    """

    path: Path
    checksums: list[str]

    def save(self, training: _Training) -> None:
        """Writes all or nothing: a process that is killed while it writes leaves the checkpoint before."""
        state = {
            "format": CHECKPOINT_FORMAT,
            "settings": repr(training.settings),
            "data": self.checksums,
            "run": vars(training.progress),
            "module": training.module.state_dict(),
            "optimiser": training.optimiser.state_dict(),
            "random": torch.get_rng_state(),
        }
        held = io.BytesIO()
        torch.save(state, held)
        replace_file(self.path, lambda file: file.write(sealed(held.getvalue())), durable=True)

    def load_into(self, training: _Training) -> None:
        """Puts a training where the checkpoint stands, torch's random state included.

        Raises:
            CheckpointError: the checkpoint is damaged or no checkpoint, or of other settings, data, model or alpha.
        """
        state = self._read(training.settings)
        training.progress = _Progress(**state["run"])
        for epoch, alpha in enumerate(training.progress.alpha):
            if alpha != training.weight(epoch):
                what = f"alpha {alpha:g} in epoch {epoch}, not {training.weight(epoch):g}"
                raise CheckpointError(f"'{self.path}' was made with {what}: remove it or use its alpha")
        try:
            training.module.load_state_dict(state["module"])
        except RuntimeError as error:
            line = str(error).splitlines()[-1].strip()
            raise CheckpointError(f"'{self.path}' is of another model: {line}") from error
        training.optimiser.load_state_dict(state["optimiser"])
        torch.set_rng_state(state["random"])
        self._check_held_out_elbo(training)

    def _read(self, settings: TrainingSettings) -> dict[str, Any]:
        path = self.path
        try:
            archive, has_digest = unsealed(content_of(path))
            if not has_digest:
                raise DamagedFileError("it has no digest, perhaps because an earlier version of ppl_vi wrote it")
            state = torch.load(io.BytesIO(archive), weights_only=True)
            found_format, found_settings = state["format"], state["settings"]
            if set(state) != CHECKPOINT_PARTS or set(state["run"]) != set(vars(_Progress())):
                raise DamagedFileError("it has other parts")
        except DamagedFileError as error:
            raise CheckpointError(f"'{path}' is no checkpoint, or a damaged one: {error}") from error
        except Exception as error:  # torch raises errors of many kinds
            raise CheckpointError(f"'{path}' is no checkpoint, or a damaged one: {type(error).__name__}") from error
        if found_format != CHECKPOINT_FORMAT:
            raise CheckpointError(
                f"'{path}' has checkpoint format {found_format}; this version reads {CHECKPOINT_FORMAT}"
            )
        if found_settings != repr(settings):
            made = f"'{path}' was made with {found_settings}, not {settings!r}"
            raise CheckpointError(f"{made}: remove it or use its settings")
        if state["data"] != self.checksums:
            raise CheckpointError(f"'{path}' was made with other data: remove it or use its data")
        return state

    def _check_held_out_elbo(self, training: _Training) -> None:
        """Refuses a model that differs in what is no parameter, such as its likelihood: its held-out ELBO is another.

        Raises:
            CheckpointError: it is.
        """
        here, then = training.held_out_elbo(), training.progress.held_out[-1]
        if not abs(here - then) <= HELD_OUT_TOLERANCE * abs(here):
            what = f"its held-out ELBO was {then:.6g} nats and is {here:.6g} here"
            raise CheckpointError(f"'{self.path}' is of another model: {what}")
