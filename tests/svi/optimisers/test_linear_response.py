"""Linear response: exact for normal posteriors, by a second route elsewhere, and refused with a reason."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.optimize
import torch
from torch import Tensor

import ppl_vi
from models import ZOO
from ppl_vi import fit
from ppl_vi.svi.fit import UnsuitableObjectiveError
from ppl_vi.svi.objectives import find_objective
from ppl_vi.svi.optimisers.linear_response import NUM_DRAWS, NoCovarianceError, draws
from ppl_vi.svi.optimisers.normals import normals_of
from ppl_vi.svi.optimisers.sampled import SampledElbo
from ppl_vi.svi.setup import Strategy
from ppl_vi.target.target import Target
from tests.svi.optimisers.conjugate import CENTRE, COVARIANCE, target


def test_on_a_normal_posterior_it_is_exact() -> None:
    found = fit(target(), "linear_response", num_replicas=2)
    at = normals_of(found.program, found.theta)
    assert found.num_particles == NUM_DRAWS
    assert (found.status == "converged").all()
    for replica in range(2):
        # Newton's method leaves some 1e-8 in the location, and the inverse Hessian has the rounding of its own
        assert torch.allclose(at.loc[0, replica], CENTRE, atol=1e-6)
        factor = at.factor[0, replica]
        assert torch.allclose(factor @ factor.mT, COVARIANCE, atol=1e-6)


def test_it_is_how_the_optimum_moves_when_the_posterior_is_tilted() -> None:
    """The definition, by a second route: tilt the log density by t'u, find the optimum anew, and take differences."""
    posed = ZOO["logistic_regression"]()
    found = fit(posed, "linear_response", num_particles=16)
    dim, e = posed.dim, draws(found.program, Strategy(find_objective("trace_elbo"), 1000, 16, 0.2, 0), 1)
    elbo = SampledElbo(posed, True, e)
    args = tuple(arg[0] for arg in elbo.args)

    def loc_at(tilt: np.ndarray) -> np.ndarray:
        tilted = torch.from_numpy(tilt)

        def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
            point = torch.from_numpy(x).requires_grad_()
            value = elbo.loss(point, *args) - tilted @ (posed.start.loc[0] + posed.start.scale[0] * point[:dim])
            value.backward()
            assert point.grad is not None
            return float(value.detach()), point.grad.numpy()

        options = {"gtol": 1e-10}
        x = scipy.optimize.minimize(loss, np.zeros(2 * dim), jac=True, method="BFGS", options=options).x
        return posed.start.loc[0].numpy() + posed.start.scale[0].numpy() * x[:dim]

    step = 1e-3
    moved = [(loc_at(step * unit) - loc_at(-step * unit)) / (2 * step) for unit in np.eye(dim)]
    factor = normals_of(found.program, found.theta).factor[0, 0]
    covariance = (factor @ factor.mT).numpy()
    # Differences of width 1e-3 are right to about its square, times third derivatives of order 1
    np.testing.assert_allclose(np.stack(moved), covariance, rtol=1e-3, atol=1e-3 * np.abs(covariance).max())


def test_with_dadvi_its_mean_is_that_of_the_fixed_draws() -> None:
    posed = ZOO["logistic_regression"]()
    mean_field = fit(posed, "AutoNormal", objective="dadvi", num_replicas=2)
    found = fit(posed, "linear_response", objective="dadvi", num_replicas=2)
    one, other = (normals_of(each.program, each.theta) for each in (mean_field, found))
    assert torch.allclose(one.loc, other.loc, atol=1e-6)
    assert found.num_particles == 30


def falling(data: Tensor) -> None:
    """A density that rises again beside its mode, so that a wide mean field's ELBO has a saddle."""
    z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=data.dtype), 1.0).to_event(1))
    pyro.factor("ridge", -data * (z[0] * z[1] - 2) ** 2)


def test_without_a_covariance_the_reason_is_one_line() -> None:
    """One iteration from a spread start ends where the ELBO of a ridge between two modes is a saddle."""
    posed = Target.of(falling, (torch.tensor(4.0, dtype=torch.float64),), name="ridge")
    with pytest.raises(NoCovarianceError, match=r"ridge: there is no .* not positive definite") as said:
        fit(posed, "linear_response", num_steps=1, seed=11)
    assert "\n" not in str(said.value)


def test_other_objectives_are_refused() -> None:
    with pytest.raises(UnsuitableObjectiveError, match="linear_response: its mean field maximises the ELBO"):
        fit(target(), "linear_response", objective="iwae:8")


def test_in_a_comparison_it_is_a_row_of_its_own() -> None:
    """On a correlated normal posterior the mean field is away from it, and linear response is not."""
    compared = ppl_vi.compare(target(), ["AutoNormal", "linear_response"], objective="dadvi", num_replicas=1)
    rows = {record["guide"]: record for record in compared.records()}
    assert rows["linear_response"]["status"] == "converged"
    assert rows["linear_response"]["is_laplace"]
    assert rows["linear_response"]["is_independent"] is False
    assert rows["linear_response"]["reverse_kl"] < rows["AutoNormal"]["reverse_kl"]
