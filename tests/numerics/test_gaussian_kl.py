"""The closed form of KL between Gaussians, against torch's own, many digits, and its special cases."""

import mpmath
import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from ppl_vi.numerics.gaussian_kl import gaussian_kl


def random_gaussian(k: int, seed: int, batch: tuple[int, ...] = ()) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(*batch, k, k, dtype=torch.float64, generator=generator)
    loc = torch.randn(*batch, k, dtype=torch.float64, generator=generator)
    return loc, root @ root.mT + 0.1 * torch.eye(k, dtype=torch.float64)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_torch_has_the_same(k: int) -> None:
    (loc0, cov0), (loc1, cov1) = random_gaussian(k, 1, (4, 3)), random_gaussian(k, 2, (3,))
    expected = kl_divergence(MultivariateNormal(loc0, cov0), MultivariateNormal(loc1, cov1))
    assert expected.shape == (4, 3)
    torch.testing.assert_close(gaussian_kl(loc0, cov0, loc1, cov1), expected, rtol=1e-9, atol=1e-10)


def test_many_digits_agree() -> None:
    (loc0, cov0), (loc1, cov1) = random_gaussian(3, 5), random_gaussian(3, 6)
    with mpmath.workdps(40):
        m0, s0, m1, s1 = (mpmath.matrix(part.tolist()) for part in (loc0, cov0, loc1, cov1))
        inverse, moved = s1**-1, m1 - m0
        trace = sum((inverse * s0)[d, d] for d in range(3))
        quadratic = (moved.T * inverse * moved)[0]
        expected = (trace + quadratic - 3 + mpmath.log(mpmath.det(s1) / mpmath.det(s0))) / 2
    assert float(gaussian_kl(loc0, cov0, loc1, cov1)) == pytest.approx(float(expected), rel=1e-12)


def test_the_prior_term_of_a_variational_autoencoder_is_a_special_case() -> None:
    loc, cov = random_gaussian(4, 8, (6,))
    zero, one = torch.zeros(4).double(), torch.eye(4).double()
    trace = torch.diagonal(cov, dim1=-2, dim2=-1).sum(-1)
    expected = (trace + loc.square().sum(-1) - 4 - torch.logdet(cov)) / 2
    torch.testing.assert_close(gaussian_kl(loc, cov, zero, one), expected, rtol=1e-12, atol=1e-12)


def test_neighbours_are_told_apart_without_cancellation() -> None:
    # variances 1 and 1 + e: (e - log(1 + e)) / 2 = e^2 / 4 - e^3 / 6 + ..., below the rounding of 1 at e = 1e-7
    one = torch.eye(1).double()
    zero = torch.zeros(1).double()
    found = gaussian_kl(zero, one * (1 + 1e-7), zero, one)
    assert float(found) == pytest.approx(2.5e-15, abs=3e-16)
    assert float(gaussian_kl(zero, one, zero, one)) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cov0": -torch.eye(2).double()}, "cov0 must be symmetric and positive definite"),
        ({"cov1": torch.tensor([[2.0, 0.5], [0.1, 1.0]]).double()}, "cov1 must be symmetric and positive definite"),
        ({"cov1": torch.eye(3).double()}, r"loc0 has 2 coordinates, but cov1 ends in shape \(3, 3\)"),
        ({"loc1": torch.zeros(3).double()}, r"loc0 has 2 coordinates, but loc1 ends in shape \(3,\)"),
    ],
)
def test_what_is_no_gaussian_is_refused(change: dict[str, Tensor], message: str) -> None:
    given = {"loc0": torch.zeros(2), "cov0": torch.eye(2), "loc1": torch.ones(2), "cov1": torch.eye(2)}
    given = {name: value.double() for name, value in given.items()}
    with pytest.raises(ValueError, match=message):
        gaussian_kl(**{**given, **change})
