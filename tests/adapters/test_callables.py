"""Objects with `sample` and `log_prob` as approximations."""

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal

from ppl_vi.adapters.callables import approximation


class Uniform:
    """An object of another kind, without a density."""

    def sample(self, shape):
        return torch.rand(*shape, 1)


def test_the_numbers_are_those_of_the_sites_in_order():
    normal = MultivariateNormal(torch.tensor([0.0, 10.0, 20.0]), torch.eye(3))
    found = approximation(normal, {"a": (), "b": (2,)}, num_draws=50)
    assert found.draws["a"].shape == (1, 50)
    assert found.draws["b"].shape == (1, 50, 2)
    flat = np.column_stack([found.draws["a"][0], found.draws["b"][0]])
    expected = -((flat - [0, 10, 20]) ** 2).sum(1) / 2 - 1.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(found.log_q[0], expected, atol=1e-4)


def test_the_seed_decides_the_draws_and_leaves_the_generator_as_it_was():
    normal = MultivariateNormal(torch.zeros(2), torch.eye(2))
    before = torch.get_rng_state()
    one, other = (approximation(normal, {"a": (2,)}, num_draws=5, seed=3).draws["a"] for _ in range(2))
    assert (one == other).all()
    assert (torch.get_rng_state() == before).all()


def test_without_log_prob_the_density_is_unknown():
    assert approximation(Uniform(), {"a": ()}, num_draws=5).log_q is None


def test_sites_of_another_size_are_refused():
    with pytest.raises(ValueError, match="2 numbers, and each draw has 1"):
        approximation(Uniform(), {"a": (2,)}, num_draws=5)


def test_an_object_that_does_not_draw_is_refused():
    with pytest.raises(TypeError, match="a method sample; got int"):
        approximation(3, {"a": ()})
