"""The truth of decoders of one to three latent numbers: closed forms, independent fine rules, and its refusals."""

import math
from dataclasses import replace

import mpmath as mp
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import integrate, stats
from torch import nn

from ppl_vi.target.decoder import Decoded
from ppl_vi.target.target import Target
from ppl_vi.truth import ground_truth
from ppl_vi.truth.decoder.cells import LogJoint
from ppl_vi.truth.decoder.evidence import CELL_RULES, decoded_truth, log_chi_tail, starting_cells
from ppl_vi.truth.decoder.modes import ascend, separate_tops
from ppl_vi.truth.decoder.tree import grow

REAL = torch.float64


def gaussian_target(decode, x, sigma, dim, *, ceiling=None, log_likelihood=None):
    """x ~ Normal(decode(z), sigma^2 I), z ~ Normal(0, I_dim); `ceiling` and `log_likelihood` may be lies."""
    num_pixels = x.shape[-1]
    best = -num_pixels * (math.log(sigma) + math.log(2 * math.pi) / 2)

    def model(x):
        z = pyro.sample("z", dist.Normal(torch.zeros(dim, dtype=REAL), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(decode(z), sigma).to_event(1), obs=x)

    def honest(z, x):
        return best - (x[:, None] - decode(z)).square().sum(-1) / (2 * sigma**2)

    decoded = Decoded(
        log_likelihood or honest, lambda x: torch.full_like(x[:, 0], best if ceiling is None else ceiling)
    )
    return Target(model, (x,), name="decoder", decoded=decoded)


def fine_sum(target, half_width, num):
    """log p(x) in 2-D by a trapezoid rule of `num` nodes a side on a square."""
    line = torch.linspace(-half_width, half_width, num, dtype=REAL)
    rows = []
    for y in line:
        z = torch.stack([line, y.expand_as(line)], -1)
        joint = target.decoded.log_likelihood(z, *target.args) - z.square().sum(-1) / 2 - math.log(2 * math.pi)
        rows.append(joint.logsumexp(1))
    return (torch.stack(rows, 1).logsumexp(1) + 2 * math.log(2 * half_width / (num - 1))).numpy()


def normal_log_density(x, W, b, sigma):
    """log Normal(x; b, W W' + sigma^2 I) in 40 digits: double precision loses 5 of its own at sigma = 0.01."""
    with mp.workdps(40):
        W, num_pixels = mp.matrix(W.tolist()), len(b)
        covariance = W * W.T + mp.mpf(sigma) ** 2 * mp.eye(num_pixels)
        precision, log_det = covariance**-1, mp.log(mp.det(covariance))
        residuals = [mp.matrix(row) - mp.matrix(b.tolist()) for row in x.tolist()]
        squares = [(r.T * precision * r)[0] for r in residuals]
        return np.array([float(-(q + log_det + num_pixels * mp.log(2 * mp.pi)) / 2) for q in squares])


# ---- against closed forms


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("sigma", [0.7, 0.05, 0.01])
def test_linear_decoder_against_the_closed_form(dim, sigma):
    """p(x) = Normal(x; b, W W' + sigma^2 I), also for data that only |z| = 9 explains, or that no z does."""
    generator = torch.Generator().manual_seed(dim)
    W = torch.randn(5, dim, generator=generator, dtype=REAL) * torch.tensor([1.0, 0.4, 0.7])[:dim]
    b = torch.randn(5, generator=generator, dtype=REAL)
    direction = torch.nn.functional.normalize(torch.randn(dim, generator=generator, dtype=REAL), dim=0)
    radius = torch.tensor([0.0, 1.0, 4.0, 9.0], dtype=REAL)
    x = b + radius[:, None] * direction @ W.T + sigma * torch.randn(4, 5, generator=generator, dtype=REAL)
    x = torch.cat([x, x[:1] + 1.5])[:: 2 if dim == 3 else 1]  # seconds a problem in 3-D
    truth = ground_truth(gaussian_target(lambda z: z @ W.T + b, x, sigma, dim))
    exact = normal_log_density(x, W, b, sigma)
    difference = np.abs(truth.log_evidence - exact)
    # the log joint itself is rounded: it is -5e4 where no z explains x
    assert np.all(difference <= 1e-9 + 1e-14 * np.abs(exact)), difference
    assert truth.trusted.all()
    assert np.all(difference <= truth.log_evidence_error)
    assert np.all(truth.log_evidence_error <= 1e-6)
    assert [check.error <= check.tolerance for check in truth.checks] == [True] * 4


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("radius", [0.5, 3.0, 8.0])
def test_log_chi_tail(dim, radius):
    assert log_chi_tail(radius, dim) == pytest.approx(np.log(stats.chi(dim).sf(radius)), rel=1e-12)
    assert math.isfinite(log_chi_tail(4096.0, dim))


# ---- against independent rules


def two_modes(z):
    """(z1^2, z1 z2, z2): both signs of z1 explain x, unequally where x_2 differs from 0."""
    return torch.stack([z[..., 0].square(), z[..., 0] * z[..., 1], z[..., 1]], -1)


def test_two_unequal_modes_against_dblquad():
    x = torch.tensor([[4.0, 0.3, 0.1], [2.0, -0.8, -0.4]], dtype=REAL)
    target = gaussian_target(two_modes, x, 0.2, 2)
    truth = ground_truth(target)
    for (x1, x2, x3), found in zip(x.tolist(), truth.log_evidence, strict=True):

        def density(z2, z1, x1=x1, x2=x2, x3=x3):
            squares = ((x1 - z1**2) ** 2 + (x2 - z1 * z2) ** 2 + (x3 - z2) ** 2) / 0.2**2 + z1**2 + z2**2
            return math.exp(-squares / 2) / (0.2**3 * (2 * math.pi) ** 2.5)

        # the modes lie near z1 = +-2, z2 = 0.1, and +-1.4, -0.4; nothing is left 6 standard deviations off
        parts = [
            integrate.dblquad(density, *side, -1.5, 1.5, epsabs=1e-12, epsrel=1e-9)[0] for side in [(-3, 0), (0, 3)]
        ]
        assert min(parts) > 1e-8 * max(parts)
        assert found == pytest.approx(math.log(sum(parts)), abs=1e-7)
    assert truth.trusted.all()


def test_separate_modes_of_a_sharp_likelihood():
    """Narrow modes 5 or 6 apart, sigma = 0.01, by a fine sum around each."""
    x = torch.tensor([[9.0, 0.0, 0.0], [6.0, 0.02, 0.01]], dtype=REAL)
    target = gaussian_target(two_modes, x, 0.01, 2)
    truth = ground_truth(target)
    total = []
    for sign in (-1.0, 1.0):
        shift = torch.tensor([sign, 0.0], dtype=REAL) * x[:, :1].sqrt()
        parts = []
        for row in range(len(x)):
            line = torch.linspace(-0.05, 0.05, 601, dtype=REAL)
            z = torch.cartesian_prod(line, line) + shift[row]
            log_prior = -z.square().sum(-1) / 2 - math.log(2 * math.pi)
            parts.append((target.decoded.log_likelihood(z, x[row : row + 1])[0] + log_prior).logsumexp(0))
        total.append(torch.stack(parts) + 2 * math.log(0.1 / 600))
    exact = torch.stack(total).logsumexp(0).numpy()
    np.testing.assert_allclose(truth.log_evidence, exact, rtol=0, atol=1e-8)
    assert truth.trusted.all()


def test_random_tanh_decoder_against_a_fine_sum():
    torch.manual_seed(3)
    decoder = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 20)).double()
    for weight in decoder.parameters():
        weight.requires_grad_(False).mul_(2.5)

    def model(x):
        z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=REAL), 1.0).to_event(1))
        pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def log_likelihood(z, x):
        output = decoder(z)
        return x @ output.mT - nn.functional.softplus(output).sum(-1)

    x = (torch.rand(12, 20, dtype=REAL) < 0.5).double()
    target = Target(model, (x,), decoded=Decoded(log_likelihood, lambda x: torch.zeros_like(x[:, 0])))
    truth = ground_truth(target)
    exact = fine_sum(target, 9.0, 1201)
    np.testing.assert_allclose(fine_sum(target, 9.5, 901), exact, rtol=0, atol=1e-8)  # the reference stands still
    np.testing.assert_allclose(truth.log_evidence, exact, rtol=0, atol=1e-8)
    assert truth.trusted.all()
    assert np.all(truth.log_evidence_error <= 1e-6)


def test_a_problem_does_not_depend_on_its_company():
    x = torch.tensor([[4.0, 0.3, 0.1], [9.0, 0.0, 0.0], [2.0, -0.8, -0.4], [0.1, 0.2, 3.0]], dtype=REAL)
    target = gaussian_target(two_modes, x, 0.05, 2)
    together = ground_truth(target).log_evidence
    alone = [ground_truth(target.rows(torch.tensor([row]))).log_evidence[0] for row in range(len(x))]
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-9)


# ---- refusals


def test_a_mode_where_the_tree_did_not_look_is_missed():
    joint = LogJoint(gaussian_target(two_modes, torch.tensor([[4.0, 0.3, 0.1]], dtype=REAL), 0.05, 2))
    cells, integrals, _ = starting_cells(joint, CELL_RULES[2])
    ascents = ascend(joint, separate_tops(cells, integrals))
    (branch,) = grow(joint, torch.arange(1), cells, integrals, CELL_RULES[2])
    assert ascents.missed(branch).tolist() == [False]
    for side in (branch.leaves.center[:, 0] > 0, branch.leaves.center[:, 0] < 0):
        half = replace(branch, leaves=branch.leaves[side], leaf_log_mass=branch.leaf_log_mass[:, side])
        assert ascents.missed(half).tolist() == [True]


def step(z):
    """Jumps at z1 = 0.3 where z2 < 3, so that data with z2 = 6 never meet the jump."""
    jump = torch.where((z[..., 0] > 0.3) & (z[..., 1] < 3), 1.0, 0.0).to(z)
    return torch.stack([z[..., 0] + jump, 3 * z[..., 1]], -1)


def test_a_jump_is_not_certified_and_leaves_the_others_alone():
    x = torch.tensor([[0.8, 0.0], [0.2, 18.0]], dtype=REAL)
    truth = ground_truth(gaussian_target(step, x, 0.3, 2))
    assert truth.trusted.tolist() == [False, True]
    assert not truth.certified.any()  # there is no closed form
    assert truth.reasons[0]
    assert "\n" not in truth.reasons[0]
    assert truth.reasons[1] == ""
    covariance = np.diag([1 + 0.09, 9 + 0.09])
    # the jump is 12 standard deviations off: 1e-30 of the mass
    assert truth.log_evidence[1] == pytest.approx(stats.multivariate_normal([0, 0], covariance).logpdf(x[1]), abs=1e-8)


def test_too_fast_an_oscillation_is_not_certified():
    def decode(z):
        return torch.sin(3000 * z)

    truth = ground_truth(gaussian_target(decode, torch.tensor([[0.4, 0.1]], dtype=REAL), 0.3, 2))
    assert not truth.trusted.any()
    assert all("too many or too small cells" in reason for reason in truth.reasons)
    assert all(math.isnan(check.error) for check in truth.checks)  # no certified problem, nothing to boast of


def test_a_fast_oscillation_of_one_number_is_resolved():
    truth = ground_truth(gaussian_target(lambda z: torch.sin(40 * z), torch.tensor([[0.4]], dtype=REAL), 0.3, 1))

    def density(z):
        return stats.norm.pdf(z) * stats.norm.pdf(0.4, np.sin(40 * z), 0.3)

    z = np.linspace(-9, 9, 200001)
    assert truth.trusted.all()
    assert truth.log_evidence[0] == pytest.approx(math.log(integrate.trapezoid(density(z), z)), abs=1e-8)


LINEAR = torch.tensor([[1.0, 0.0], [0.2, 1.0], [0.5, 0.5]], dtype=REAL)


def linear(z):
    return z @ LINEAR.T


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        ({"ceiling": -30.0}, "exceeds its ceiling"),
        ({"ceiling": 1e9}, "outside the box"),
        ({"ceiling": math.inf}, "outside the box"),
        ({"log_likelihood": lambda z, x: -(x[:, None] - linear(z)).square().sum(-1)}, "decoder and model differ"),
        ({"log_likelihood": lambda z, x: (z[:, 0] - 0.1).log() + 0 * x[:, :1]}, "nan"),
    ],
)
def test_what_contradicts_itself_is_refused(lie, reason):
    x = torch.tensor([[0.3, 0.1, 0.4], [1.0, 2.0, 0.7]], dtype=REAL)
    truth = decoded_truth(gaussian_target(linear, x, 0.2, 2, **lie))
    assert not truth.trusted.any()
    assert all(reason in given for given in truth.reasons), truth.reasons


def test_a_wrong_closed_form_is_refused():
    target = gaussian_target(linear, torch.tensor([[0.3, 0.1, 0.4]], dtype=REAL), 0.2, 2)
    wrong = Target(target.model, target.args, lambda x: torch.zeros_like(x[:, 0]), decoded=target.decoded)
    assert "closed form" in ground_truth(wrong).reasons[0]


def test_targets_it_does_not_take():
    x = torch.zeros(1, 3, dtype=REAL)
    with pytest.raises(ValueError, match="one to three latent numbers; 'decoder' has 4"):
        decoded_truth(gaussian_target(lambda z: z[..., :3], x, 0.2, 4))
    target = gaussian_target(linear, x, 0.2, 2)
    with pytest.raises(ValueError, match="no decoder"):
        decoded_truth(Target(target.model, target.args))
