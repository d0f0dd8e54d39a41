"""All sides of the comparison take the same steps, and the step is one along the ELBO's gradient."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import vae_speed
from models.vae import VAE
from ppl_vi.guides.amortized import AMORTIZED
from ppl_vi.target.isolation import isolated
from tests.strict_json import strict


def test_both_sides_take_the_same_steps() -> None:
    with isolated(torch.float64, seed=2):
        x = torch.bernoulli(torch.rand(16, 5))
        module = VAE(5, AMORTIZED["diagonal"](2), hidden=(8,))
        sides = []
        for make in (vae_speed.plain_step, vae_speed.pyro_step):
            one = copy.deepcopy(module)
            step = make(one, x)
            torch.manual_seed(3)
            for _ in range(5):
                step()
            sides.append(one)
    start, plain, ours = (torch.cat([p.detach().ravel() for p in one.parameters()]) for one in (module, *sides))
    assert (plain - start).abs().mean() > 1e-3  # five steps of Adam at 1e-3
    # rounding, 1e-16, over Adam's 1e-8, times the step size
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-9)


@pytest.fixture
def jax_in_double() -> Iterator[Any]:
    """JAX, where NumPyro is installed, computing in double precision."""
    pytest.importorskip("numpyro")
    import jax

    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield jax
    jax.config.update("jax_enable_x64", before)


def test_numpyro_takes_the_same_steps(jax_in_double: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpyro

    with isolated(torch.float64, seed=2):
        x = torch.bernoulli(torch.rand(16, 5))
        noise = torch.randn(16, 2)
        monkeypatch.setattr(torch, "randn_like", lambda like: noise)
        monkeypatch.setattr(jax_in_double.random, "normal", lambda *args, **kwargs: noise.numpy())
        module = VAE(5, AMORTIZED["diagonal"](2), hidden=(8, 7))
        plain, step = vae_speed.plain_step(module, x), vae_speed.numpyro_step(module, x)
        for _ in range(5):
            plain()
            state = step()
    found = numpyro.optim.Adam(1e-3).get_params(state.optim_state)
    for name in ("encoder", "decoder"):
        ours = [values for layer in getattr(module, name) for _, values in layer.named_parameters()]
        theirs = [values for weight, bias in found[name] for values in (weight.T, bias)]
        for one, other in zip(ours, theirs, strict=True):
            # rounding, 1e-16, over Adam's 1e-8, times the step size
            torch.testing.assert_close(torch.tensor(other.tolist(), dtype=one.dtype), one.detach(), rtol=0, atol=1e-9)


def test_a_side_that_is_not_installed_has_rows_that_say_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "numpyro", None)  # as Python marks what can't be imported
    monkeypatch.setattr(vae_speed, "PROBLEMS", {"tiny": (5, (8,), 4), "small": (6, (8,), 4)})
    monkeypatch.setattr(vae_speed, "STEPS_PER_ROUND", 2)
    assert vae_speed.main(["--rounds", "2", "--out", str(tmp_path)]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if "NumPyro" in line]
    assert ["not installed" in row for row in rows] == [True, True]
    for record in strict((tmp_path / "records.json").read_text()):
        assert record["pyro_ms"] > 0
        assert record["numpyro_ms"] is None
        assert record["numpyro_ratio"] is None


def test_the_process_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--one")
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    before = dict(os.environ), torch.get_num_threads(), _cores()
    with vae_speed.one_core():
        assert os.environ["XLA_FLAGS"] == "--one --xla_cpu_multi_thread_eigen=false"
        assert torch.get_num_threads() == 1
        assert len(_cores()) == 1
    assert before == (dict(os.environ), torch.get_num_threads(), _cores())


def _cores() -> set[int]:
    """On which the process may run, where the system tells."""
    return os.sched_getaffinity(0) if sys.platform == "linux" else {0}


def test_the_times_are_shown_and_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vae_speed, "PROBLEMS", {"tiny": (5, (8,), 4)})
    monkeypatch.setattr(vae_speed, "STEPS_PER_ROUND", 2)
    assert vae_speed.main(["--rounds", "2", "--out", str(tmp_path)]) == 0
    assert "tiny" in capsys.readouterr().out
    (record,) = strict((tmp_path / "records.json").read_text())
    assert record["pyro_ms"] > 0
    assert record["plain_ms"] > 0
