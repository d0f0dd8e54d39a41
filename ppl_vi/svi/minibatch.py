"""Trains a model with learnable parameters and its amortized guide on mini-batches, by Pyro's `Trace_ELBO`.

The loop is the one Pyro documents for a single optimiser over all parameters: `Trace_ELBO.differentiable_loss` and
`torch.optim.Adam`, whose whole state a checkpoint can hold.
"""

from __future__ import annotations

import copy
import hashlib
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

from ppl_vi.runtime.files import replace_file
from ppl_vi.runtime.provenance import versions
from ppl_vi.target.isolation import isolated, own_randomness

FORMAT = 3  # of a checkpoint
SAME = 1e-4  # relative: more than rounding in another order changes a held-out ELBO in single precision
HELD_OUT_PARTICLES = 8
HELD_OUT_SEED = 12_345  # the same noise every epoch, so that epochs are compared on equal terms

Alpha = Callable[[int], float]
Epoch = Callable[[int, int, float, float], None]


class Amortized(Protocol):
    """A module that holds a Pyro model and guide of a mini-batch, such as `models.vae.VAE`."""

    def model(self, x: Tensor, num_data: int | None = None, alpha: float = 1.0) -> Any:
        """Scales a mini-batch `(M, ...)` to `num_data` points and the KL to the prior by `alpha`."""

    def guide(self, x: Tensor, num_data: int | None = None, alpha: float = 1.0) -> Any:
        """The guide of the same."""


def untrained(build: Callable[[], Any], *, seed: int, dtype: torch.dtype = torch.float32) -> Any:
    """What a function builds, such as an `Amortized` with its initial weights, in one dtype and from one seed."""
    with isolated(dtype, seed):
        return build()


def isolated_module(module: Any, seed: int) -> AbstractContextManager[None]:
    """The gate for an `Amortized`, which has no target: see `ppl_vi.target.isolation.isolated`; in its own dtype."""
    return isolated(next(module.parameters()).dtype, seed)


class CheckpointError(ValueError):
    """A checkpoint can't be used; the message says why."""


@dataclass(frozen=True)
class TrainingSettings:
    """How a model is trained.

    Attributes:
        num_epochs: passes over the data at most.
        batch_size: data points a step.
        lr: of Adam, falling to a tenth over the epochs along a half cosine.
        num_particles: draws of the guide a data point and step.
        patience: epochs without a better held-out ELBO after which to stop.
        seed: of shuffling and noise.
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
    """What training gave.

    Attributes:
        module: a copy of the module with the parameters of the best held-out ELBO, not to be trained further.
        train_elbo: a data point, averaged over each epoch's mini-batches while the parameters moved, nats, `(E,)`.
        held_out_elbo: a data point, at each epoch's end, at alpha = 1, nats, `(E,)`.
        best_epoch: whose parameters these are, from 0.
        stop_reason: why there were no more epochs.
        seconds: of training, in all processes that it took.
        settings: as given.
        versions: of what computed it.
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
class _Run:
    """Where training stands."""

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

    It is alpha min(1, (epoch + 1) / num_epochs), epochs counted from 0: always positive, as a model wants it.

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
    """Maximises the ELBO over the parameters of model and guide; the module that is given stays as it is.

    With a checkpoint, the whole state is written after every epoch, and a resumed run goes on to bitwise the same
    result as one that was never interrupted.

    Args:
        module: an `Amortized`.
        data: `(N, ...)`, or a function of the epoch that gives them (data binarised anew each time).
        held_out: `(M, ...)`, on which to stop.
        settings: how.
        alpha: weight of the KL to the prior, constant or by epoch from 0; the ELBOs reported are at alpha = 1.
        checkpoint: a file.
        resume: go on from the checkpoint if there is one.
        progress: called after each epoch with its number, the most there can be, and the two ELBOs.

    Raises:
        CheckpointError: the checkpoint is damaged, foreign, or of other settings, data, model or alpha.
        FloatingPointError: the ELBO is no longer finite; the message says when.
    """
    began = time.perf_counter()
    settings = settings or TrainingSettings()
    batches = data if callable(data) else lambda epoch: data
    weight = (lambda epoch: float(alpha(epoch))) if callable(alpha) else lambda epoch: float(alpha)
    module = copy.deepcopy(module)
    run = _Run()
    with isolated_module(module, settings.seed), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Encountered (NaN|\\+?-?inf)")  # told below, with the epoch
        sums = None if checkpoint is None else _sums(batches, held_out)
        optimiser = Adam(module.parameters(), lr=settings.lr)
        elbo = Trace_ELBO(num_particles=settings.num_particles)
        if resume and checkpoint is not None and checkpoint.exists():
            run = _load(checkpoint, module, optimiser, settings, weight, sums)
            _check_model(checkpoint, run, _held_out(module, held_out))
        began -= run.seconds  # of the processes before
        while not run.stop_reason:
            run.alpha.append(weight(run.epoch))
            _epoch(run, elbo, module, optimiser, batches(run.epoch), settings)
            run.held_out.append(_held_out(module, held_out))
            if not np.isfinite(run.held_out[-1]):
                raise FloatingPointError(f"the held-out ELBO is {run.held_out[-1]} after epoch {run.epoch + 1}")
            if run.best_epoch == run.epoch:
                run.best = {name: value.detach().clone() for name, value in module.state_dict().items()}
            run.epoch += 1
            run.stop_reason = _finished(run, settings)
            run.seconds = time.perf_counter() - began
            if checkpoint is not None:
                _save(checkpoint, run, module, optimiser, settings, sums)
            if progress:
                progress(run.epoch, settings.num_epochs, run.train[-1], run.held_out[-1])
    module.load_state_dict(run.best)
    return Trained(
        module=module.requires_grad_(False),
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
    """One step of an optimiser along the gradient of the ELBO of a mini-batch.

    Args:
        module: an `Amortized`.
        elbo: its estimator.
        optimiser: of the module's parameters.
        x: the mini-batch, `(M, ...)`.
        num_data: `N`, of the data that it stands for; its own number by default.
        alpha: weight of the KL to the prior.

    Returns:
        The loss at the parameters before, `()`, a data point, nats.

    Raises:
        FloatingPointError: it is not finite; there has been no step.
    """
    num_data = len(x) if num_data is None else num_data
    optimiser.zero_grad()
    loss = elbo.differentiable_loss(module.model, module.guide, x, num_data, alpha) / num_data
    if not bool(loss.isfinite()):
        raise FloatingPointError(f"the loss is {float(loss.detach())}")
    loss.backward()
    optimiser.step()
    return loss.detach()


def _epoch(run: _Run, elbo: Trace_ELBO, module: Any, optimiser: Adam, data: Tensor, settings: TrainingSettings) -> None:
    total = 0.0
    for group in optimiser.param_groups:
        group["lr"] = settings.rate(run.epoch)
    for index in torch.randperm(len(data)).split(settings.batch_size):
        try:
            loss = gradient_step(module, elbo, optimiser, data[index], num_data=len(data), alpha=run.alpha[-1])
        except FloatingPointError as error:
            hint = f"try a smaller lr than {settings.lr:g}"
            raise FloatingPointError(f"{error} in epoch {run.epoch}: {hint}") from error
        total -= float(loss) * len(index) / len(data)
    run.train.append(total)


def _held_out(module: Any, data: Tensor) -> float:
    """The ELBO of a data point at alpha = 1, on the same noise each time, nats."""
    with own_randomness(HELD_OUT_SEED), torch.no_grad(), poutine.block():
        loss = Trace_ELBO(num_particles=HELD_OUT_PARTICLES).loss(module.model, module.guide, data)
    return -loss / len(data)


def _finished(run: _Run, settings: TrainingSettings) -> str:
    waited = run.epoch - 1 - run.best_epoch
    if waited >= settings.patience:
        return f"no better held-out ELBO for {waited} epochs"
    return f"all {settings.num_epochs} epochs taken" if run.epoch >= settings.num_epochs else ""


def _sums(batches: Callable[[int], Tensor], held_out: Tensor) -> list[str]:
    """By which the data are known again, those of the first epoch and those held out."""
    with torch.random.fork_rng(devices=[]):  # whoever draws them draws the same once more when it is their turn
        data = batches(0), held_out
    return [hashlib.sha256(part.detach().cpu().numpy().tobytes()).hexdigest() for part in data]


def _save(
    path: Path, run: _Run, module: nn.Module, optimiser: Adam, settings: TrainingSettings, sums: list[str] | None
) -> None:
    """All or nothing: a process killed while it writes leaves the checkpoint before."""
    state = {
        "format": FORMAT,
        "settings": repr(settings),
        "data": sums,
        "run": vars(run),
        "module": module.state_dict(),
        "optimiser": optimiser.state_dict(),
        "random": torch.get_rng_state(),
    }
    replace_file(path, lambda file: torch.save(state, file), durable=True)


def _load(
    path: Path, module: nn.Module, optimiser: Adam, settings: TrainingSettings, weight: Alpha, sums: list[str] | None
) -> _Run:
    try:
        state = torch.load(path, weights_only=True)
        found = state["format"], state["settings"]
    except Exception as error:
        raise CheckpointError(f"'{path}' is no checkpoint, or a damaged one: {type(error).__name__}") from error
    if found[0] != FORMAT:
        raise CheckpointError(f"'{path}' has checkpoint format {found[0]}; this version reads {FORMAT}")
    if found[1] != repr(settings):
        raise CheckpointError(f"'{path}' was made with {found[1]}, not {settings!r}: remove it or use its settings")
    if state["data"] != sums:
        raise CheckpointError(f"'{path}' was made with other data: remove it or use its data")
    run = _Run(**state["run"])
    for epoch, alpha in enumerate(run.alpha):
        if alpha != weight(epoch):
            what = f"alpha {alpha:g} in epoch {epoch}, not {weight(epoch):g}"
            raise CheckpointError(f"'{path}' was made with {what}: remove it or use its alpha")
    try:
        module.load_state_dict(state["module"])
    except RuntimeError as error:
        raise CheckpointError(f"'{path}' is of another model: {str(error).splitlines()[-1].strip()}") from error
    optimiser.load_state_dict(state["optimiser"])
    torch.set_rng_state(state["random"])
    return run


def _check_model(path: Path, run: _Run, held_out: float) -> None:
    """A model that differs in what is no parameter, such as its likelihood, has another held-out ELBO."""
    if not abs(held_out - run.held_out[-1]) <= SAME * abs(held_out):
        what = f"its held-out ELBO was {run.held_out[-1]:.6g} nats and is {held_out:.6g} here"
        raise CheckpointError(f"'{path}' is of another model: {what}")
