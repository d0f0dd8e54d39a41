"""Quadrature over a few outer latents with exact draws of the others, against closed forms; what is refused."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from models import funnel
from ppl_vi.target.conditional import Conditional
from ppl_vi.target.target import Target
from ppl_vi.truth import ground_truth, partial_truth

REAL = torch.float64


def as_one(latents):
    return torch.cat([value.reshape((*value.shape[:2], -1)) for value in latents.values()], -1)


def test_a_funnel_is_reduced_to_its_scale():
    truth = ground_truth(funnel.target())
    assert (truth.grade, truth.method) == ("certified", "quadrature over v")
    assert truth.log_evidence[0] == pytest.approx(0.0, abs=1e-9)
    found = truth.expectation(as_one)
    assert (found.value.abs() < 5 * found.std_error + 1e-9).all()
    square = truth.expectation(lambda latents: latents["v"].square())
    assert float(square.value) == pytest.approx(9.0, abs=5 * float(square.std_error) + 1e-6)


def pair(y):
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.Normal(a, 1.0).expand([4]).to_event(1))
    pyro.sample("y", dist.Normal(b, 1.0).to_event(1), obs=y)


def conditional(shift=0.0, constant=0.0):
    def log_marginal(outer, y):
        a = outer["a"]
        return constant + dist.Normal(0.0, 1.0).log_prob(a) + dist.Normal(a, math.sqrt(2.0)).log_prob(y).sum()

    def sample(outer, noise, y):
        return {"b": (outer["a"] + y) / 2 + shift + noise / math.sqrt(2)}

    return Conditional(("a",), log_marginal, sample, 4)


@pytest.mark.parametrize(
    ("wrong", "reason"), [({}, ""), ({"shift": 0.1}, "Stein"), ({"constant": 0.1}, "importance sampling")]
)
def test_a_wrong_conditional_is_told(wrong, reason):
    y = torch.tensor([[0.3, -1.0, 2.0, 0.5]], dtype=REAL)
    truth = ground_truth(Target(pair, (y,), conditional=conditional(**wrong)))
    if reason:
        assert truth.grade == "uncertified"
        assert reason in truth.reasons[0]
        return
    assert truth.grade == "checked", truth.reasons
    exact = stats.multivariate_normal(np.zeros(4), 2 * np.eye(4) + 1).logpdf(y[0].numpy())
    assert truth.log_evidence[0] == pytest.approx(exact, abs=1e-10)
    b = truth.expectation(lambda latents: latents["b"])
    a = float(y.sum()) / 2 / 3  # precision 1 + 4 / 2
    assert ((b.value - (a + y) / 2).abs() < 5 * b.std_error + 1e-9).all()
    assert (b.std_error < 5e-3).all()


def test_several_problems_are_rows_of_one_truth():
    y = torch.tensor([[0.3, -1.0, 2.0, 0.5], [7.0, 6.0, 8.0, 5.5]], dtype=REAL)
    truth = ground_truth(Target(pair, (y,), conditional=conditional()))
    assert truth.grade == "checked", truth.reasons
    exact = stats.multivariate_normal(np.zeros(4), 2 * np.eye(4) + 1).logpdf(y.numpy())
    np.testing.assert_allclose(truth.log_evidence, exact, rtol=0, atol=1e-10)
    a = truth.expectation(lambda latents: latents["a"])
    assert ((a.value - y.sum(1) / 6).abs() < 5 * a.std_error + 1e-9).all()
    assert len({check.name for check in truth.checks}) == len(truth.checks)


def test_a_target_without_a_usable_conditional_is_refused_with_the_reason():
    y = torch.zeros((1, 4), dtype=REAL)
    with pytest.raises(ValueError, match=r"'pair' has no conditional.*pass Target\(conditional="):
        partial_truth(Target(pair, (y,), name="pair"))
    wide = Conditional(("b",), *(getattr(conditional(), name) for name in ("log_marginal", "sample", "num_noise")))
    with pytest.raises(ValueError, match="quadrature reaches 3 outer numbers; 'pair' has 4"):
        partial_truth(Target(pair, (y,), name="pair", conditional=wide))
