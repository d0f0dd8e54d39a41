"""The modes of mixtures whose parts do not overlap, in up to five dimensions, and where replicas start around them."""

import math
import shutil

import pyro
import pyro.distributions as dist
import pytest
import torch

import ppl_vi
from ppl_vi.svi.start_points import allotted, centres
from ppl_vi.target import slopes
from ppl_vi.truth.modes import modes_of

SHARE = torch.tensor([0.25, 0.6, 0.15], dtype=torch.float64)


def mixture(dim):
    """Three normals far apart, whose factors are not diagonal."""
    loc = torch.stack([torch.full((dim,), at, dtype=torch.float64) for at in (-9.0, 1.0, 12.0)])
    below = 0.5 * torch.ones(dim, dim, dtype=torch.float64).tril(-1)
    factor = torch.stack([scale * (torch.eye(dim, dtype=torch.float64) + below) for scale in (0.7, 1.0, 1.3)])
    return loc, factor


def posterior(dim, unit=1.0):
    """The mixture's coordinates are those of the latent in terms of `unit`."""
    loc, factor = mixture(dim)
    prior_sd = 1e6 * unit * torch.ones(dim, dtype=torch.float64)

    def model():
        z = pyro.sample("z", dist.Normal(torch.zeros(dim, dtype=torch.float64), prior_sd).to_event(1))
        parts = torch.distributions.MultivariateNormal(loc, scale_tril=factor).log_prob(z[..., None, :] / unit)
        pyro.factor("x", (parts + SHARE.log()).logsumexp(-1))

    return ppl_vi.Target.of(model, ())


def draws(dim, num=20_000):
    loc, factor = mixture(dim)
    generator = torch.Generator().manual_seed(dim)
    which = torch.multinomial(SHARE, num, replacement=True, generator=generator)
    noise = torch.randn(num, dim, generator=generator, dtype=torch.float64)
    return loc[which] + (factor[which] @ noise[..., None])[..., 0], torch.full((num,), -math.log(num)).double()


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_modes_have_their_places_masses_and_moments(dim):
    """From draws: a mass has a standard error of 0.005 at 8,192 of them, a mean one of 1.3 / sqrt(1,200) = 0.04."""
    target, (loc, factor) = posterior(dim), mixture(dim)
    found = modes_of(target, 0, *draws(dim))
    order = [1, 0, 2]  # the heaviest first
    assert len(found) == 3
    torch.testing.assert_close(found.peak, loc[order], rtol=0, atol=1e-4)
    torch.testing.assert_close(found.factor, factor[order], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.share, SHARE[order], rtol=0, atol=0.02)
    torch.testing.assert_close(found.loc[:3], loc[order], rtol=0, atol=0.25)
    torch.testing.assert_close(found.spread[:3], factor[order], rtol=0, atol=0.2)
    torch.testing.assert_close(found.loc[3], SHARE @ loc, rtol=0, atol=0.5)
    around = centres(target, 8, (found,)).loc[0]
    assert [int((around - peak).square().sum(1).lt(1e-6).sum()) for peak in found.peak] == [5, 2, 1]


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")
def test_by_machine_code_as_on_much_data_modes_are_those_of_torchs_derivatives(monkeypatch):
    plain, much, points = posterior(5), posterior(5), draws(5)
    want = modes_of(plain, 0, *points)
    assert plain.slopes is None
    monkeypatch.setattr(slopes, "MIN_NUMBERS", 1)
    found = modes_of(much, 0, *points)
    assert much.slopes is not None
    assert len(found) == 3
    torch.testing.assert_close(found.peak, want.peak, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.factor, want.factor, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.share, want.share)


def test_modes_of_latents_whose_scales_differ_by_fourteen_powers_of_ten():
    """They are those of the same posterior in units of its scales."""
    unit = torch.logspace(-8, 6, 5, dtype=torch.float64)
    target, (loc, factor), (z, log_weight) = posterior(5, unit), mixture(5), draws(5)
    found = modes_of(target, 0, unit * z, log_weight)
    order = [1, 0, 2]
    assert len(found) == 3
    torch.testing.assert_close(found.peak / unit, loc[order], rtol=0, atol=1e-4)
    torch.testing.assert_close(found.factor / unit[:, None], factor[order], rtol=1e-4, atol=1e-4)


def test_the_truths_own_points_show_the_modes():
    truth = ppl_vi.ground_truth(posterior(2))
    (found,) = truth.modes
    torch.testing.assert_close(found.share, SHARE[[1, 0, 2]], rtol=0, atol=1e-6)


def test_one_mode_is_where_the_target_itself_starts():
    def model(x):
        z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    target = ppl_vi.Target.of(model, (torch.tensor(3.0, dtype=torch.float64),))
    truth = ppl_vi.ground_truth(target)
    assert len(truth.modes[0]) == 1
    plain, given = (ppl_vi.fit(target, "AutoNormal", num_steps=8, modes=modes) for modes in ((), truth.modes))
    assert torch.equal(plain.theta, given.theta)
    with pytest.raises(ValueError, match="modes must be those of a truth of the target"):
        ppl_vi.fit(posterior(2), "AutoNormal", num_steps=8, modes=truth.modes)


@pytest.mark.parametrize(
    ("share", "num", "expected"),
    [
        ([1.0], 3, [0, 0, 0]),
        ([0.5, 0.5], 4, [0, 0, 1, 1]),
        ([1.0, 0.0], 1, [0]),
        ([1.0, 0.0], 2, [0, 0]),
        ([1.0, 0.0], 4, [0, 0, 0, 1]),
        ([0.9, 0.1, 0.0], 6, [0, 0, 0, 0, 1, 2]),
        ([0.4, 0.3, 0.2, 0.1], 4, [0, 1, 2, 3]),
    ],
)
def test_more_than_half_of_the_replicas_go_by_mass_and_the_others_to_modes_without_one(share, num, expected):
    assert allotted(torch.tensor(share, dtype=torch.float64), num) == expected


def test_a_ridge_whose_curvature_is_not_positive_leaves_one_part():
    """On a circle the curvature along it is 0, or a rounding error of either sign."""

    def model():
        z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=torch.float64), 1e8).to_event(1))
        pyro.factor("x", dist.Normal(3.0, 0.1).log_prob(z.square().sum(-1).sqrt()))

    angle = torch.linspace(0, 2 * math.pi, 201, dtype=torch.float64)[1:]
    u = 3 * torch.stack([angle.cos(), angle.sin()], 1)
    found = modes_of(ppl_vi.Target.of(model, ()), 0, u, torch.full((200,), -math.log(200)).double())
    assert bool(found.factor.isfinite().all())
    assert float(found.share.sum()) == pytest.approx(1)
    torch.testing.assert_close(found.spread[-1], 3 / math.sqrt(2) * torch.eye(2).double(), rtol=0, atol=1e-6)
