"""The search for a posterior: modes and importance sampling of densities that are known exactly."""

import math

import pytest
import torch
from scipy import stats

from ppl_vi.target.log_density import Density
from ppl_vi.truth.quadrature.search import Modes, Proposal, ascended, search

REAL = torch.float64


def two_hills(u):
    """0.3 N((-3, 1), diag(0.04, 1)) + 0.7 N((4, 0), diag(1, 0.25)), times e^2."""
    left = -((u[0] + 3) ** 2) / 0.08 - (u[1] - 1) ** 2 / 2 - math.log(0.2) + math.log(0.3)
    right = -((u[0] - 4) ** 2) / 2 - u[1] ** 2 / 0.5 - math.log(0.5) + math.log(0.7)
    # torch.logaddexp has second derivatives of nan where one part is far larger than the other
    return torch.stack([left, right]).logsumexp(0) - math.log(2 * math.pi) + 2


def everywhere(u):
    return torch.ones(len(u), dtype=torch.bool)


def test_ascents_find_both_modes_with_their_curvature() -> None:
    density = Density(two_hills, 2, REAL, everywhere)
    starts = torch.tensor([[-2.9, 0.0], [5.0, 0.4], [3.0, -0.2], [-3.1, 1.5]], dtype=REAL)
    modes = ascended(density, starts, torch.tensor([20.0, 20.0], dtype=REAL))
    # the other hill is 25 sd away: e^-300 of it
    torch.testing.assert_close(modes.u, torch.tensor([[-3.0, 1.0], [4.0, 0.0]], dtype=REAL), atol=1e-7, rtol=0)
    covariance = modes.factor @ modes.factor.mT
    expected = torch.stack([torch.tensor(row, dtype=REAL).diag() for row in ([0.04, 1.0], [1.0, 0.25])])
    torch.testing.assert_close(covariance, expected, rtol=1e-6, atol=1e-8)
    expected_mass = torch.tensor([math.log(0.3), math.log(0.7)], dtype=REAL) + 2
    torch.testing.assert_close(modes.log_mass, expected_mass, rtol=0, atol=1e-6)


def test_importance_sampling_finds_the_evidence_and_both_hills() -> None:
    density = Density(two_hills, 2, REAL, everywhere)
    prior = 5 * torch.randn((200, 2), generator=torch.Generator().manual_seed(1), dtype=REAL)
    found = search(density, prior, torch.zeros(2, dtype=REAL), seed=0)
    assert len(found.modes.u) == 2
    assert 0 < found.std_error < 0.05
    assert abs(found.log_evidence - 2) < 5 * found.std_error
    share = float((found.sample[:, 0] < 0).double().mean())
    # 1,024 draws with replacement from 16,384: at most twice a binomial's variance
    assert abs(share - 0.3) < 5 * math.sqrt(2 * 0.21 / len(found.sample))
    right = found.sample[found.sample[:, 0] > 0, 0]  # the proposal itself is far wider than the hill, of variance 1
    assert abs(float(right.var()) - 1) < 5 * math.sqrt(2 * 2 / len(right))


@pytest.mark.parametrize("learned", [False, True])
def test_the_proposal_is_normalised_and_has_the_stated_parts(learned: bool) -> None:
    """90% are Student t densities of 4 degrees of freedom, the mode's and a learned one; 10% are uniform on the box."""
    modes = Modes(*(torch.tensor(x, dtype=REAL) for x in ([[1.5]], [0.0], [[[0.4]]])))
    low, high = torch.tensor([-3.0], dtype=REAL), torch.tensor([7.0], dtype=REAL)
    proposal = Proposal(modes, low, high)
    expected = stats.t(4, 1.5, 0.4).pdf
    if learned:
        proposal = proposal.learned(
            torch.tensor([[0.0], [2.0]], dtype=REAL), torch.tensor([0.0, math.log(3)], dtype=REAL)
        )

        def expected(u):  # weights 1/4 and 3/4: mean 3/2, variance 3/4
            return (stats.t(4, 1.5, 0.4).pdf(u) + stats.t(4, 1.5, math.sqrt(0.75)).pdf(u)) / 2

    u = torch.tensor([-4.0, -2.0, 1.4, 1.9, 6.9, 7.1], dtype=REAL)
    inside = (u >= -3) & (u <= 7)
    density = 0.9 * torch.from_numpy(expected(u.numpy())) + 0.1 * inside.double() / 10
    torch.testing.assert_close(proposal.log_prob(u[:, None]), density.log(), rtol=1e-12, atol=1e-12)


def test_a_log_density_that_is_infinite_in_the_scan_is_refused() -> None:
    density = Density(lambda u: torch.where(u[0] > 2, torch.inf, -u.square().sum()), 1, REAL, everywhere, "spiked")
    prior = torch.randn((50, 1), generator=torch.Generator().manual_seed(1), dtype=REAL)
    with pytest.raises(
        ValueError, match=r"^spiked: the log density is infinite, at .*: where latents are rounded onto"
    ):
        search(density, prior, torch.zeros(1, dtype=REAL), seed=0)
