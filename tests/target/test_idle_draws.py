"""Models that draw initial values, which their sites then replace."""

import math

import numpy as np
import pyro
import pyro.contrib.gp as gp
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroSample
from scipy import stats

import ppl_vi
from ppl_vi.target.target import Target

REAL = torch.float64
X = torch.tensor([-1.0, 0.3, 0.8, 2.0], dtype=REAL)
Y = torch.tensor([0.4, -0.2, 1.1, 1.9], dtype=REAL)


def line(x, y):
    """Its network is made, and drawn, in each run."""
    net = torch.nn.Linear(1, 1)
    weight = pyro.sample("weight", dist.Normal(0.0, 2.0))
    bias = pyro.sample("bias", dist.Normal(0.0, 1.0))
    values = {"weight": weight.reshape(1, 1), "bias": bias.reshape(1)}
    mean = torch.func.functional_call(net, values, (x[:, None],))[:, 0]
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mean, 0.5), obs=y)


TARGET = Target.of(line, (X, Y))


def test_a_network_made_in_each_run_has_one_density():
    weight, bias = torch.tensor([[0.7, -1.2, 0.1]], dtype=REAL), torch.tensor([[0.2, 0.5, -0.9]], dtype=REAL)
    mean = np.multiply.outer(weight[0].numpy(), X.numpy()) + bias[0].numpy()[:, None]
    exact = stats.norm.logpdf(weight, scale=2) + stats.norm.logpdf(bias) + stats.norm.logpdf(Y, mean, 0.5).sum(1)
    found = TARGET.log_joint({"weight": weight, "bias": bias})
    np.testing.assert_allclose(found, exact, rtol=1e-12)


@pytest.mark.slow
def test_a_network_made_in_each_run_is_a_model_like_any_other():
    x = X.numpy()
    exact = stats.multivariate_normal.logpdf(Y.numpy(), np.zeros(4), 4 * np.outer(x, x) + 1 + 0.25 * np.eye(4))
    assert ppl_vi.ground_truth(TARGET).log_evidence[0] == pytest.approx(exact, abs=1e-7)
    found = ppl_vi.fit(TARGET, "AutoMultivariateNormal", num_steps=200)  # it contains the posterior
    assert found.elbo_history[found.num_steps.max() - 1] == pytest.approx(exact, abs=0.02)


def kernel_with_priors(x, y):
    kernel = gp.kernels.RBF(1)
    kernel.lengthscale = PyroSample(dist.LogNormal(torch.tensor(0.0), 0.5))
    kernel.variance = PyroSample(dist.LogNormal(torch.tensor(0.0), 0.7))
    gp.models.GPRegression(x, y, kernel, noise=torch.tensor(0.1, dtype=x.dtype), jitter=1e-6).model()


@pytest.mark.slow
def test_a_gaussian_process_with_priors_on_its_kernel_against_a_grid():
    """The noise is learned; with it the posterior has two numbers, over whose logarithms the grid runs."""
    found = ppl_vi.fit(Target.of(kernel_with_priors, (X, Y)), "AutoMultivariateNormal", num_steps=200)
    noise = float(found.target.learned.values["noise"])
    length, variance = np.meshgrid(*[np.linspace(-5, 5, 161)] * 2, indexing="ij")
    squares = (X.numpy()[:, None] - X.numpy()) ** 2
    covariance = np.exp(variance)[..., None, None] * np.exp(-squares / 2 / np.exp(2 * length)[..., None, None])
    covariance = covariance + (noise + 1e-6) * np.eye(len(X))
    quadratic = np.linalg.solve(covariance, Y.numpy()[:, None])[..., 0] @ Y.numpy()
    density = -(quadratic + np.linalg.slogdet(covariance)[1] + len(X) * math.log(2 * math.pi)) / 2
    prior = stats.norm.logpdf(length, scale=0.5) + stats.norm.logpdf(variance, scale=0.7)
    exact = math.log(np.exp(density + prior).sum() * (10 / 160) ** 2)
    assert ppl_vi.ground_truth(found.target).log_evidence[0] == pytest.approx(exact, abs=1e-6)
