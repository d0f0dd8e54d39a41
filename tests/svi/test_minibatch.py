"""Training of amortized guides: what it reaches, what a checkpoint gives back, what a bad one says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoDelta

from models import exponential_normal
from models.amortized_toy import AmortizedToy
from models.vae import VAE
from ppl_vi.guides import FAMILIES
from ppl_vi.guides.amortized import AMORTIZED
from ppl_vi.runtime.archives import unsealed
from ppl_vi.svi.minibatch import (
    HELD_OUT_PARTICLES,
    Alpha,
    CheckpointError,
    TrainingSettings,
    gradient_step,
    train,
    warmed_up,
)
from ppl_vi.target.isolation import isolated

ROOT = Path(__file__).resolve().parents[2]
SHORT = TrainingSettings(num_epochs=6, batch_size=16, lr=5e-3, patience=6, seed=3)


class StoppedError(Exception):
    """Raised by a progress function."""


def small_vae() -> VAE:
    with isolated(torch.float32, seed=1):
        return VAE(5, AMORTIZED["full"](2), hidden=(8,))


def some_data(num: int = 64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(2, 5, generator=generator)
    return torch.bernoulli(torch.sigmoid(2 * torch.randn(num, 2, generator=generator) @ weight), generator=generator)


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(u, v) for (a, u), (b, v) in pairs)


def test_training_raises_the_held_out_elbo_and_leaves_the_module_alone() -> None:
    vae, data = small_vae(), some_data(256)
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    found = train(vae, data, data[:64], TrainingSettings(num_epochs=25, batch_size=32, lr=1e-2, seed=0))
    assert all(torch.equal(before[name], value) for name, value in vae.state_dict().items())
    assert found.held_out_elbo[found.best_epoch] == found.held_out_elbo.max()
    assert found.held_out_elbo.max() > found.held_out_elbo[0] + 0.2
    assert not same(vae, found.module)


def test_the_weight_of_the_kl_grows_linearly_and_then_stays() -> None:
    assert [warmed_up(0.5, 4)(epoch) for epoch in range(6)] == [0.125, 0.25, 0.375, 0.5, 0.5, 0.5]
    assert [warmed_up(3.0, num)(epoch) for num in (0, 1) for epoch in (0, 7)] == [3.0] * 4
    found: list[float] = []

    class Listening(VAE):
        def model(self, x: torch.Tensor, num_data: int | None = None, alpha: float = 1.0) -> None:
            found.append(alpha)
            super().model(x, num_data, alpha)

    with isolated(torch.float32, seed=1):
        vae = Listening(5, AMORTIZED["full"](2), hidden=(8,))
    data = some_data(32)
    train(vae, data, data, TrainingSettings(num_epochs=3, batch_size=16), alpha=warmed_up(0.5, 2))
    # of each epoch two steps, then the held-out particles
    held_out = [1.0] * HELD_OUT_PARTICLES
    assert found == [0.25, 0.25, *held_out, 0.5, 0.5, *held_out, 0.5, 0.5, *held_out]


@pytest.mark.parametrize("alpha", [1.0, warmed_up(2.0, 5)], ids=["constant", "warmed up"])
@pytest.mark.parametrize("stop_at", [1, 4])
def test_a_resumed_run_ends_at_the_same_bits(tmp_path: Path, stop_at: int, alpha: Alpha | float) -> None:
    data, file = some_data(), tmp_path / "one.checkpoint"
    whole = train(small_vae(), data, data[:16], SHORT, alpha=alpha)

    def stop(epoch: int, *_: float) -> None:
        if epoch == stop_at:
            raise StoppedError

    with pytest.raises(StoppedError):
        train(small_vae(), data, data[:16], SHORT, alpha=alpha, checkpoint=file, progress=stop)
    torch.manual_seed(99)  # the caller's random state is of no account
    resumed = train(small_vae(), data, data[:16], SHORT, alpha=alpha, checkpoint=file, resume=True)
    assert same(whole.module, resumed.module)
    assert np.array_equal(whole.train_elbo, resumed.train_elbo)
    assert np.array_equal(whole.held_out_elbo, resumed.held_out_elbo)
    again = train(small_vae(), data, data[:16], SHORT, alpha=alpha, checkpoint=file, resume=True)
    assert same(whole.module, again.module)
    assert again.seconds == resumed.seconds > 0  # no epoch was left
    assert "all 6 epochs" in again.stop_reason


def test_patience_stops_on_the_held_out_elbo() -> None:
    data = some_data()
    found = train(small_vae(), data, 1 - data, TrainingSettings(num_epochs=200, batch_size=16, lr=3e-2, patience=3))
    assert len(found.held_out_elbo) == found.best_epoch + 1 + 3 < 200
    assert "no better held-out ELBO for 3 epochs" in found.stop_reason


def test_the_caller_is_left_as_it_was() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(small_vae(), some_data(), some_data(), TrainingSettings(num_epochs=1))
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_default_dtype() == torch.float32


def test_a_checkpoint_is_for_everybody_and_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    other, file = tmp_path / "other", tmp_path / "one.checkpoint"
    other.touch()
    train(small_vae(), some_data(), some_data(), TrainingSettings(num_epochs=2), checkpoint=file)
    assert file.stat().st_mode == other.stat().st_mode
    assert len(synced) == 2


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda raw: raw[: len(raw) // 2], "damaged"),
        (lambda raw: b"not a checkpoint", "damaged"),
        (lambda raw: b"", "damaged"),
    ],
)
def test_a_damaged_checkpoint_says_so(tmp_path: Path, spoil: object, message: str) -> None:
    file = tmp_path / "one.checkpoint"
    train(small_vae(), some_data(), some_data(), SHORT, checkpoint=file)
    file.write_bytes(spoil(file.read_bytes()))  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=message):
        train(small_vae(), some_data(), some_data(), SHORT, checkpoint=file, resume=True)


def test_a_checkpoint_of_other_settings_or_another_model_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "one.checkpoint"
    train(small_vae(), some_data(), some_data(), SHORT, checkpoint=file)
    with pytest.raises(CheckpointError, match="was made with"):
        train(small_vae(), some_data(), some_data(), TrainingSettings(num_epochs=7), checkpoint=file, resume=True)
    with isolated(torch.float32, seed=1):
        other = VAE(5, AMORTIZED["diagonal"](2), hidden=(8,))
    with pytest.raises(CheckpointError, match="another model"):
        train(other, some_data(), some_data(), SHORT, checkpoint=file, resume=True)


def test_a_checkpoint_of_other_data_or_another_likelihood_is_refused(tmp_path: Path) -> None:
    file, data = tmp_path / "one.checkpoint", some_data()
    train(small_vae(), data, data[:16], SHORT, checkpoint=file)
    flipped = data.clone()
    flipped[3, 2] = 1 - flipped[3, 2]
    for one, held_out in ((flipped, data[:16]), (data, flipped[:16]), (lambda epoch: flipped, data[:16])):
        with pytest.raises(CheckpointError, match="other data"):
            train(small_vae(), one, held_out, SHORT, checkpoint=file, resume=True)
    for sigma in (0.1, 0.1003):  # neither likelihood nor a fixed sigma is among the parameters
        with isolated(torch.float32, seed=1):
            other = VAE(5, AMORTIZED["full"](2), hidden=(8,), likelihood="gaussian", sigma=sigma)
        with pytest.raises(CheckpointError, match="another model: its held-out ELBO was"):
            train(other, data, data[:16], SHORT, checkpoint=file, resume=True)
        train(other, data, data[:16], SHORT, checkpoint=file)


def test_data_drawn_from_the_global_generator_are_the_same_with_a_checkpoint(tmp_path: Path) -> None:
    def anew(epoch: int) -> torch.Tensor:
        return torch.bernoulli(torch.full((32, 5), 0.4))

    file = tmp_path / "one.checkpoint"
    whole = train(small_vae(), anew, some_data(), SHORT)
    assert same(whole.module, train(small_vae(), anew, some_data(), SHORT, checkpoint=file).module)
    assert same(whole.module, train(small_vae(), anew, some_data(), SHORT, checkpoint=file, resume=True).module)


def test_a_checkpoint_of_another_alpha_is_refused(tmp_path: Path) -> None:
    file, long = tmp_path / "one.checkpoint", TrainingSettings(num_epochs=5)

    def stop(epoch: int, *_: float) -> None:
        if epoch == 3:
            raise StoppedError

    with pytest.raises(StoppedError):
        train(small_vae(), some_data(), some_data(), long, alpha=0.5, checkpoint=file, progress=stop)
    before = file.read_bytes()
    for alpha, message in ((0.25, "alpha 0.5 in epoch 0, not 0.25"), (warmed_up(0.5, 2), "epoch 0, not 0.25")):
        with pytest.raises(CheckpointError, match=message):
            train(small_vae(), some_data(), some_data(), long, alpha=alpha, checkpoint=file, resume=True)
    assert file.read_bytes() == before
    # what comes later is free
    train(small_vae(), some_data(), some_data(), long, alpha=lambda e: 0.5 + (e > 3), checkpoint=file, resume=True)


def test_killed_at_any_moment_a_good_checkpoint_is_there(tmp_path: Path) -> None:
    file = tmp_path / "one.checkpoint"
    code = (
        "from tests.svi.test_minibatch import *\n"
        "settings = TrainingSettings(num_epochs=100000, patience=100000)\n"
        f"train(small_vae(), some_data(), some_data(), settings, checkpoint=Path({str(file)!r}))"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) as running:
        deadline = time.monotonic() + 60
        while not file.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.3)
        os.kill(running.pid, signal.SIGKILL)
    settings = TrainingSettings(num_epochs=100000, patience=100000)
    reached: list[int] = []

    def stop(epoch: int, *_: float) -> None:
        reached.append(epoch)
        raise StoppedError

    with pytest.raises(StoppedError):
        train(small_vae(), some_data(), some_data(), settings, checkpoint=file, resume=True, progress=stop)
    assert reached[0] >= 2


@pytest.mark.parametrize("bad", [{"num_epochs": 0}, {"lr": -1.0}, {"lr": float("inf")}, {"batch_size": 0}])
def test_bad_settings_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        TrainingSettings(**bad)  # type: ignore[arg-type]


def test_a_loss_that_is_not_finite_names_the_epoch() -> None:
    data = torch.full((8, 5), torch.nan)
    with pytest.raises(FloatingPointError, match=r"the loss is nan in epoch 0: try a smaller lr than 0\.005"):
        train(small_vae(), data, some_data(), SHORT)
    vae = small_vae()
    with (
        isolated(torch.float32),
        pytest.warns(UserWarning, match="Encountered NaN"),  # Pyro's
        pytest.raises(FloatingPointError, match="the loss is nan"),
    ):
        gradient_step(vae, Trace_ELBO(), torch.optim.SGD(vae.parameters(), lr=0.1), data)
    assert same(vae, small_vae())


def test_a_held_out_elbo_that_is_not_finite_is_never_the_best() -> None:
    held_out = torch.full((4, 5), torch.nan)
    with pytest.raises(FloatingPointError, match="the held-out ELBO is nan after epoch 1"):
        train(small_vae(), some_data(), held_out, SHORT)


def pathless(model: Any) -> Any:
    """A guide whose draws can't be differentiated."""

    class Pathless(dist.Exponential):
        has_rsample = False

    def guide(x: torch.Tensor) -> None:
        pyro.sample(
            "z", Pathless(pyro.param("rate", torch.tensor(1.0).double(), torch.distributions.constraints.positive))
        )

    return guide


TRAINABLE = [name for name in FAMILIES if name != "normal"]


@pytest.mark.parametrize("name", TRAINABLE)
def test_every_family_that_fits_the_toy_can_be_amortized(name: str) -> None:
    with isolated(torch.float64, seed=0):
        module = AmortizedToy(exponential_normal.target([1.0]), FAMILIES[name], hidden=(8,))
    x = torch.linspace(-2, 4, 32, dtype=torch.float64)
    found = train(module, x, x, TrainingSettings(num_epochs=6, batch_size=16, lr=1e-2))
    assert found.held_out_elbo.max() > found.held_out_elbo[0]


def test_an_amortized_autoguides_elbo_is_that_of_its_law_in_closed_form() -> None:
    problems = exponential_normal.target([-1.0, 0.5, 3.0])
    with isolated(torch.float64, seed=0):
        module = AmortizedToy(problems, FAMILIES["AutoNormal"], hidden=(8,))
    (x,) = problems.args
    loc, log_scale = module.theta(x).detach().unbind(-1)
    scale = torch.nn.functional.softplus(log_scale)
    # z = exp(u), u ~ Normal(loc, scale): E z = exp(loc + scale^2 / 2), E z^2 = exp(2 loc + 2 scale^2)
    mean, square = (loc + scale.square() / 2).exp(), (2 * loc + 2 * scale.square()).exp()
    log_joint = -mean - (x.square() - 2 * x * mean + square) / 2 - np.log(2 * np.pi) / 2
    entropy = loc + scale.log() + (1 + np.log(2 * np.pi)) / 2
    expected = float((log_joint + entropy).sum())
    with isolated(torch.float64, seed=1), torch.no_grad():
        draws = torch.tensor([-Trace_ELBO().loss(module.model, module.guide, x) for _ in range(400)])
    assert abs(float(draws.mean()) - expected) < 5 * float(draws.std()) / 400**0.5
    assert float(draws.std()) / 400**0.5 < 0.1


@pytest.mark.parametrize(
    ("family", "message"),
    [
        (AutoDelta, "a point mass: it has no density"),
        (FAMILIES["normal"], "the guide's support .* is not inside the model's"),
        (pathless, "site 'z' is drawn from a .*, without a path for gradients"),
    ],
)
def test_what_cannot_be_amortized_is_refused(family: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AmortizedToy(exponential_normal.target([1.0]), family)


def test_a_checkpoint_with_one_flipped_bit_anywhere_is_refused(tmp_path: Path) -> None:
    """Of the best weights, too, which training does not touch again: without a digest they came back changed."""
    file = tmp_path / "one.checkpoint"
    train(small_vae(), some_data(), some_data(), SHORT, checkpoint=file)
    content = file.read_bytes()
    for place in np.random.default_rng(0).integers(len(content), size=60):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="is no checkpoint, or a damaged one"):
            train(small_vae(), some_data(), some_data(), SHORT, checkpoint=file, resume=True)
    file.write_bytes(unsealed(content)[0])
    with pytest.raises(CheckpointError, match="it has no digest, perhaps because an earlier version"):
        train(small_vae(), some_data(), some_data(), SHORT, checkpoint=file, resume=True)
