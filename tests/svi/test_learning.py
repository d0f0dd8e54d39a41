"""Parameters of the model, learned with those of a guide: empirical Bayes and decoders against maximum likelihood."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, constraints

from ppl_vi import compare
from ppl_vi.guides import RefusedFamilyError
from ppl_vi.guides.own import family_of
from ppl_vi.svi import learning
from ppl_vi.svi.fit import fit
from ppl_vi.svi.learning import LearningError
from ppl_vi.svi.result import Fit
from ppl_vi.svi.status import Status
from ppl_vi.target.target import Target
from ppl_vi.truth import ground_truth

Y = torch.tensor([2.9, -0.3, 1.7, 0.4, 2.1, 4.2, 1.1, -2.8, 0.6, 1.4, 0.1, 1.2], dtype=torch.float64)
NUM = len(Y)
POSITIVE = constraints.positive


def values_of(found: Fit) -> dict[str, Tensor]:
    assert found.target.learned is not None
    return found.target.learned.values


def effects(y: Tensor) -> None:
    """Each y is Normal(mu, (tau^2 + 1)^0.5): the likelihood is highest at the data's mean and variance."""
    mu = pyro.param("mu", torch.tensor(0.0))
    tau = pyro.param("tau", torch.tensor(1.0), constraint=POSITIVE)
    with pyro.plate("rows", len(y), subsample_size=4):
        batch = pyro.subsample(y, event_dim=0)
        z = pyro.sample("z", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(z, 1.0), obs=batch)


def test_a_prior_is_learned_by_maximum_likelihood() -> None:
    """The fit may gain 1e-3 nats at most, and mu and tau are off by so much as that allows: gain = error^2 I / 2."""
    found = fit(Target.of(effects, (Y,)), AutoNormal, num_particles=64)
    variance, tau = float(Y.var(correction=0)), float(Y.var(correction=0) - 1) ** 0.5
    learned = values_of(found)
    assert found.target.learned is not None
    assert found.target.learned.status == "converged"
    assert float(learned["mu"]) == pytest.approx(float(Y.mean()), abs=math.sqrt(2e-3 * variance / NUM))
    assert float(learned["tau"]) == pytest.approx(tau, abs=math.sqrt(2e-3 * variance**2 / (2 * NUM)) / tau)
    assert found.status[0, 0] == "converged"


def level(y: Tensor) -> None:
    centre = pyro.param("centre", torch.tensor(-1.0))
    z = pyro.sample("z", dist.Normal(centre, 2.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


@pytest.mark.parametrize("engine", ["batched", "pyro"])
def test_the_truth_is_that_of_the_frozen_model(engine: str) -> None:
    """log p(y) at the learned centre by the closed form; a second fit begins where the first began."""
    target = Target.of(level, (Y,))
    before = target.log_joint({"z": torch.zeros(1, 1, dtype=torch.float64)})
    options: dict[str, Any] = {"engine": engine, "num_steps": 40, "num_particles": 4}
    found = fit(target, AutoNormal, **options)
    centre = float(values_of(found)["centre"])
    assert centre != -1  # where it began
    covariance = torch.eye(NUM, dtype=torch.float64) + 4.0
    exact = float(MultivariateNormal(torch.full_like(Y, centre), covariance).log_prob(Y))
    truth = ground_truth(found.target)
    assert truth.log_evidence[0] == pytest.approx(exact, abs=1e-8)
    assert "learned with AutoNormal (not converged; all 40 steps taken; " in truth.assumptions[-1]
    assert truth.assumptions[-1].endswith(f"centre = {centre:.6g}")
    assert torch.equal(target.log_joint({"z": torch.zeros(1, 1, dtype=torch.float64)}), before)
    assert float(values_of(fit(target, AutoNormal, **options))["centre"]) == centre


# ---- decoders: probabilistic principal components (Tipping and Bishop 1999), one latent a row

WEIGHT, OFFSET = torch.tensor([1.5, -1.0, 0.5]), torch.tensor([1.0, 2.0, -1.0])
_random = torch.Generator().manual_seed(0)
X = torch.randn(15, 1, generator=_random) * WEIGHT + OFFSET + 0.5 * torch.randn(15, 3, generator=_random)
NETWORK = nn.Linear(1, 3)


def decode(net: nn.Module, sd: Tensor, x: Tensor, part: int | None) -> None:
    with pyro.plate("rows", len(x), subsample_size=part):
        batch = pyro.subsample(x, event_dim=1)
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(net(z[..., None]), sd).to_event(1), obs=batch)


def by_statements(x: Tensor) -> None:
    """A network in single precision, which belongs to the user."""
    pyro.module("decoder", NETWORK)
    decode(NETWORK, pyro.param("sd", torch.tensor(1.0), constraint=POSITIVE), x, 10)


class Decoder(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = PyroModule[nn.Linear](1, 3)
        self.sd = PyroParam(torch.tensor(1.0), POSITIVE)

    def forward(self, x: Tensor) -> None:
        decode(self.net, self.sd, x, None)


def likelihood(weight: Tensor, offset: Tensor, variance: Tensor) -> float:
    covariance = weight[:, None] * weight + variance * torch.eye(3, dtype=torch.float64)
    return float(MultivariateNormal(offset, covariance).log_prob(X.double()).sum())


def highest_likelihood() -> float:
    centred = X.double() - X.double().mean(0)
    eigenvalues, vectors = torch.linalg.eigh(centred.mT @ centred / len(X))
    variance = eigenvalues[:-1].mean()
    return likelihood(vectors[:, -1] * (eigenvalues[-1] - variance).sqrt(), X.double().mean(0), variance)


@pytest.mark.parametrize("kind", ["statements", "module"])
def test_a_linear_decoder_is_learned_by_maximum_likelihood(kind: str) -> None:
    """The posterior of each row is Gaussian, so the ELBO's optimum is that of the likelihood.

    What the likelihood falls short by, the ELBO does, too, and so it is at most what the fit may still gain.
    """
    before = [value.detach().clone() for value in NETWORK.parameters()]
    torch.manual_seed(1)
    model: Any = by_statements if kind == "statements" else Decoder()
    names = ("decoder$$$weight", "decoder$$$bias", "sd") if kind == "statements" else ("net.weight", "net.bias", "")
    found = fit(Target.of(model, (X,)), AutoNormal)
    learned = values_of(found)
    weight, offset, *sd = (learned[name] for name in names if name)
    variance = (sd[0] if sd else learned["sd_unconstrained"].exp()) ** 2
    shortfall = highest_likelihood() - likelihood(weight[:, 0], offset, variance)
    assert found.target.learned is not None
    gain = float(found.target.learned.stop_reason.split("at most ")[1].split()[0])
    assert 0 <= shortfall < gain < 0.1
    assert highest_likelihood() - likelihood(WEIGHT.double(), OFFSET.double(), torch.tensor(1.0)) > 1
    assert all(map(torch.equal, before, NETWORK.parameters()))
    assert found.target.latents[0].shape == (len(X),)
    assert not any(value.requires_grad for value in learned.values())


def test_the_replica_with_the_highest_bound_at_the_end_is_kept() -> None:
    """One diverged, one was better at first, one stopped early, and its later steps have no bound."""
    bounds = np.array(
        [[0.0, -9.0, -9.0, -5.0], [-1.0, -2.0, -3.0, -3.0], [9.0, -2.5, -2.0, np.nan], [9.0, -2.5, -1.0, np.nan]]
    )
    statuses = np.array([[Status.DIVERGED, *[Status.NOT_CONVERGED] * 3]], dtype=object)
    running: Any = SimpleNamespace(bounds=[step[None] for step in bounds], status=statuses)
    assert learning._best_replica(running, "model") == 2
    running.status[:] = Status.DIVERGED
    running.stop_reason = np.array([["diverged at step 3"] * 4])
    with pytest.raises(LearningError, match="model: the model's parameters could not be learned: diverged at step 3"):
        learning._best_replica(running, "model")


def test_a_saved_fit_brings_what_was_learned(tmp_path: Path) -> None:
    found = fit(Target.of(by_statements, (X,)), AutoNormal, num_steps=16, num_particles=2, engine="batched")
    found.save(tmp_path / "fit.npz")
    for target in (Target.of(by_statements, (X,)), found.target):  # with the parameters still to be learned, or learned
        loaded = Fit.load(tmp_path / "fit.npz", target)
        assert str(loaded.target.learned) == str(found.target.learned)
        draws = found.draw(2, seed=0)
        assert torch.equal(loaded.draw(2, seed=0)["z"], draws["z"])
        assert torch.equal(loaded.target.log_joint({"z": draws["z"][0]}), found.target.log_joint({"z": draws["z"][0]}))
    with pytest.raises(ValueError, match="was fitted to another target"):
        Fit.load(tmp_path / "fit.npz", Target.of(effects, (Y,)))


# ---- comparisons, and what is refused


def test_a_comparison_measures_all_guides_against_what_the_first_learned() -> None:
    result = compare(level, [AutoNormal, AutoMultivariateNormal], (Y,), num_replicas=2, num_steps=200, num_particles=16)
    learned = result.target.learned
    assert learned is not None
    assert learned.guide == "AutoNormal"
    assert float(learned.values["centre"]) == pytest.approx(float(Y.mean()), abs=0.1)
    assert all(result[guide].target is result.target for guide in ("AutoNormal", "AutoMultivariateNormal"))
    assert "parameters are those learned with AutoNormal" in " ".join(str(result).split())


def test_what_has_to_be_learned_first_is_said() -> None:
    target = Target.of(level, (Y,))
    with pytest.raises(ValueError, match=r"level: .* own parameters 'centre', which are to be learned first: found = "):
        ground_truth(target)
    with pytest.raises(RefusedFamilyError, match="a Laplace approximation has no ELBO"):
        fit(target, "laplace")
    with pytest.raises(ValueError, match="has a parameter 'centre', which can't be learned for many problems at once"):
        _ = Target.batch(level, (Y[:, None],)).latents


def test_a_support_that_moves_with_what_is_learned_is_refused() -> None:
    def model(y: Tensor) -> None:
        z = pyro.sample("z", dist.Uniform(0.0, pyro.param("top", torch.tensor(3.0), constraint=POSITIVE)))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    with pytest.raises(ValueError, match="support of site 'z' moves with the model's own parameters"):
        Target.of(model, (Y[0],))


def test_a_parameter_that_model_and_guide_share_is_refused() -> None:
    def guide(y: Tensor) -> None:
        pyro.sample("z", dist.Normal(pyro.param("centre", torch.tensor(-1.0)), 0.3))

    target = Target.of(level, (Y,))
    with pytest.raises(LearningError, match="level: the model and the guide both state the parameter 'centre'"):
        fit(target, family_of(target, guide))
