"""Members of a family at chosen parameters, over the toy's posterior."""

from functools import cache

import pytest
import torch
from torch.distributions import transform_to

from models.exponential_normal import target
from ppl_vi.guides import FAMILIES
from ppl_vi.metrics.exact.grid import quadrature_grid
from ppl_vi.svi.fit import fit
from ppl_vi.truth import ground_truth


@cache
def truth_at(xs):
    return ground_truth(target(xs))


@cache
def fit_at(family, xs):
    """A fit of a single step, of which only the family and the target matter."""
    return fit(truth_at(xs).target, family, num_steps=1, num_particles=2, allow_support_mismatch=True)


def theta_of(found, parameters):
    """Constrained parameters by name, `(B, R)` or `(B, R, K)`, as unconstrained `theta`, `(B, R, D)`.

    One that is not given stays at its initial value.
    """
    constraints = FAMILIES[found.family_name].constraints
    named = {}
    for name, value in found.program.layout.unflatten(found.program.initial[None, None]).items():
        parameter = name.partition(".")[0]
        named[name] = value
        if parameter not in parameters:
            continue
        value = torch.as_tensor(parameters[parameter], dtype=torch.float64)
        if name.endswith("_unconstrained"):
            value = transform_to(constraints[parameter]).inv(value)
        named[name] = value
    return found.program.layout.flatten(named)


@pytest.fixture(scope="session")
def place():
    """`place(family, x, **parameters)`: the grid of one member, `(1, 1)`, or of several, `(1, R)`, at one x."""

    def at(family, x, **parameters):
        found, values = fit_at(family, (float(x),)), {}
        if family == "gamma":  # the cases name the rate, the family its mean
            parameters["mean"] = parameters["concentration"] / parameters.pop("rate")
        for name, value in parameters.items():
            value = torch.as_tensor(value, dtype=torch.float64)
            values[name] = value.reshape((1, 1) if value.dim() == 0 else (1, *value.shape))
        return quadrature_grid(found, truth_at((float(x),)), theta_of(found, values))

    return at


@pytest.fixture(scope="session")
def truths():
    return truth_at


@pytest.fixture(scope="session")
def fits():
    return fit_at
