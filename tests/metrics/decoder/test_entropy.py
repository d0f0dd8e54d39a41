"""A mixture's entropy and its derivatives, against automatic differentiation of a finer rule."""

import pytest
import torch
from torch import Tensor
from torch.func import jacrev, vmap

from ppl_vi.guides.amortized.mixture import NUM_COMPONENTS
from ppl_vi.guides.amortized.mixture import Mixture as Head
from ppl_vi.metrics.decoder.elbo import settled_prior_kl
from ppl_vi.metrics.decoder.entropy import coordinates, negative_entropy
from ppl_vi.numerics.mixtures import GaussianMixtures
from ppl_vi.numerics.rules import gaussian_rule, num_rule_levels

NUM = 3


def mixtures(dim: int) -> GaussianMixtures:
    """Neither equal nor apart: weights between 0.1 and 0.6, widths that differ by half."""
    head, generator = Head(dim), torch.Generator().manual_seed(5)
    local = torch.randn(NUM, head.num_outputs, dtype=torch.float64, generator=generator)
    return GaussianMixtures(*head.components(0.4 * local))


def mixture_at(point: Tensor, dim: int) -> GaussianMixtures:
    rest = point[NUM_COMPONENTS:].reshape(NUM_COMPONENTS, dim, 1 + dim)
    return GaussianMixtures(point[:NUM_COMPONENTS], rest[..., 0], rest[..., 1:])


def lower(dim: int) -> Tensor:
    """Which coordinates are no zeros of a triangular matrix."""
    each = torch.cat([torch.ones(dim, 1), torch.ones(dim, dim).tril()], -1).bool()
    return torch.cat([torch.ones(NUM_COMPONENTS).bool(), each.repeat(NUM_COMPONENTS, 1, 1).flatten()])


@pytest.mark.parametrize(("dim", "tolerance"), [(1, 1e-8), (2, 1e-7)])
def test_the_entropys_derivatives_are_those_of_a_finer_rule(dim: int, tolerance: float) -> None:
    mixture, fine = mixtures(dim), num_rule_levels(dim) - 2
    gaussian_rule(fine, dim)  # made outside of the transforms

    def entropy(point: Tensor) -> Tensor:
        return mixture_at(point, dim).negative_entropy(fine)

    at, kept = coordinates(mixture), lower(dim)
    found = negative_entropy(mixture, num_rule_levels(dim) - 1)
    slope, curvature = vmap(jacrev(entropy))(at), vmap(jacrev(jacrev(entropy)))(at)
    assert float(slope[:, kept].abs().min()) > 1e-5
    # beyond 7 standard deviations there is 1e-11 of the mass, and log q of 30 nats
    torch.testing.assert_close(found.value, vmap(entropy)(at), rtol=0, atol=tolerance)
    torch.testing.assert_close(found.slope[:, kept], slope[:, kept], rtol=0, atol=tolerance)
    torch.testing.assert_close(
        found.curvature[:, kept][:, :, kept], curvature[:, kept][:, :, kept], rtol=0, atol=30 * tolerance
    )


def test_without_second_derivatives_the_rest_is_the_same() -> None:
    bent, straight = (negative_entropy(mixtures(2), 2, curved) for curved in (True, False))
    torch.testing.assert_close(straight.value, bent.value, rtol=0, atol=0)
    torch.testing.assert_close(straight.slope, bent.slope, rtol=0, atol=0)
    assert not straight.curvature.any()


def test_one_gaussians_entropy_is_its_closed_form() -> None:
    mixture = GaussianMixtures(*(part[:, :1] for part in mixtures(2)))
    mixture = mixture._replace(log_weights=torch.zeros(NUM, 1).double())
    found = negative_entropy(mixture, 1)
    torch.testing.assert_close(found.value, mixture.negative_entropy(0), rtol=0, atol=1e-12)


def test_a_narrow_component_is_not_lost_between_a_wide_ones_nodes() -> None:
    weights = torch.tensor([[0.7, 0.3]]).double()
    locs = torch.tensor([[[0.2, -0.1], [0.55, 0.25]]]).double()
    scales = torch.tensor([[1.0, 0.2]]).double()
    mixture = GaussianMixtures(weights.log(), locs, scales[..., None, None] * torch.eye(2).double())
    exact = settled_prior_kl(mixture, 1e-8)
    assert float(exact.error) < 1e-5
    expected = exact.value - mixture.cross_entropy()
    assert float((mixture.negative_entropy(2) - expected).abs()) > 3e-3
    torch.testing.assert_close(negative_entropy(mixture, 2).value, expected, rtol=0, atol=1e-3)
