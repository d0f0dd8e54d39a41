"""Where guides begin: each coordinate at its own location and scale."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import (
    AutoDiagonalNormal,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from torch import Tensor
from torch.func import vmap

from models.eight_schools import target as eight_schools
from models.exponential_normal import target as toy
from ppl_vi import Target
from ppl_vi.guides import FAMILIES
from ppl_vi.guides.mean_field import Form
from ppl_vi.svi.finishing import NoModeError
from ppl_vi.svi.fit import fit
from ppl_vi.svi.program import Program, flat_parameters
from ppl_vi.svi.randomness import pseudo_random
from ppl_vi.svi.start import SCALE_BY_SITE, build_guide, centre_parameters, start_guide, start_parameters, start_points
from ppl_vi.target.isolation import isolated

LOC = torch.tensor([0.5, -1.0, 2.0, 0.1], dtype=torch.float64)
SCALE = torch.tensor([0.01, 3.0, 0.2, 40.0], dtype=torch.float64)


def model(y: Tensor) -> None:
    """Three sites of four latent numbers, one with a dotted name, one on positive numbers in a plate."""
    centre = pyro.sample("part.centre", dist.Normal(0.0, 1.0))
    with pyro.plate("pair", 2):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    last = pyro.sample("last", dist.Normal(0.0, 5.0))
    pyro.sample("y", dist.Normal(centre + rate.sum() + last, 1.0), obs=y)


TARGET = Target.of(model, (np.array(1.5),))


def test_auto_normal() -> None:
    guide: Any = build_guide(AutoNormal, TARGET, 0, LOC, SCALE)
    found = [guide._get_loc_and_scale(site.name) for site in TARGET.latents]
    torch.testing.assert_close(torch.cat([loc.reshape(-1) for loc, _ in found]), LOC, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(torch.cat([scale.reshape(-1) for _, scale in found]), SCALE, rtol=1e-9, atol=0)


@pytest.mark.parametrize("family", [AutoDiagonalNormal, AutoMultivariateNormal])
def test_gaussians_over_all_coordinates(family: Any) -> None:
    posterior = build_guide(family, TARGET, 0, LOC, SCALE).get_posterior()  # type: ignore[operator]
    torch.testing.assert_close(posterior.mean.detach(), LOC, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(posterior.stddev.detach(), SCALE, rtol=1e-9, atol=0)


def test_a_full_covariance_begins_with_that_of_the_modes_curvature() -> None:
    """By the inverse of the precision, not by its factor; in the centre of all replicas and in each of them."""
    covariance = torch.linalg.inv(TARGET.start.precision[0])
    assert float(covariance[0, 1].abs()) > 0.02  # they are correlated
    centre = build_guide(AutoMultivariateNormal, TARGET)
    for guide in (centre, start_guide(AutoMultivariateNormal, TARGET, 2, seed=1)):
        found = guide.get_posterior().covariance_matrix.detach()  # type: ignore[operator]
        torch.testing.assert_close(found, covariance, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("family", [AutoNormal, AutoDiagonalNormal, AutoMultivariateNormal, AutoLaplaceApproximation])
def test_parameters_of_all_replicas_are_those_of_guides_built_one_by_one(family: Any) -> None:
    guide = start_guide(family, TARGET, 3, seed=2)
    layout = Program(TARGET, guide).layout
    loc, scale = start_points(TARGET, 3, seed=2)
    factor = TARGET.start.cholesky[0]
    built = [build_guide(family, TARGET, 0, loc[0, r], scale[0, r], factor=factor) for r in range(3)]
    expected = torch.stack([flat_parameters(layout, one) for one in built])[None]
    found = start_parameters(family, TARGET, guide, layout, 3, seed=2)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert bool((found[0, 0] != found[0, 1]).any())
    centre = flat_parameters(layout, build_guide(family, TARGET))
    found = centre_parameters(family, TARGET, guide, layout, seed=2)
    torch.testing.assert_close(found, centre[None, None], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if isinstance(family, Form)])
def test_parameters_of_a_form_are_those_of_guides_built_one_by_one(name: str) -> None:
    """For several problems and replicas; the guides' own constructors are the second route."""
    target, family = toy([-1.0, 0.5, 40.0]), FAMILIES[name]
    guide = start_guide(family, target, 2, seed=2)
    layout = Program(target, guide).layout
    loc, scale = start_points(target, 2, seed=2)
    places = [(b, r) for b in range(3) for r in range(2)]
    built = [build_guide(family, target, b, loc[b, r], scale[b, r]) for b, r in places]
    expected = torch.stack([flat_parameters(layout, one) for one in built]).reshape(3, 2, -1)
    found = start_parameters(family, target, guide, layout, 2, seed=2)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("family", SCALE_BY_SITE)
def test_guides_that_keep_a_scale_for_each_site(family: Any) -> None:
    """By draws: some keep standard deviations, some factors of them."""
    program = Program(TARGET, build_guide(family, TARGET, 0, LOC, SCALE))
    noise = pseudo_random(program.draws, (400,), torch.Generator().manual_seed(1))
    with isolated(TARGET.dtype, seed=0), torch.no_grad():
        latents = vmap(lambda draws: program.latents(program.initial, TARGET.row(0), draws))(noise)
    u = TARGET.unconstrain(latents)
    # a standard deviation of 400 draws is good to 3.5%; AutoGaussian's own random factors change it by up to 5%
    torch.testing.assert_close(u.std(0), SCALE, rtol=0.15, atol=0)


def test_low_rank_keeps_pyros_share_between_factor_and_diagonal() -> None:
    guide: Any = build_guide(AutoLowRankMultivariateNormal, TARGET, 0, LOC, SCALE)
    torch.testing.assert_close(guide.scale.detach(), SCALE * 0.5**0.5, rtol=1e-9, atol=0)


def test_a_site_with_the_name_of_a_modules_method_is_refused_where_it_would_break_the_guide() -> None:
    def clashing(y: Tensor) -> None:
        half = pyro.sample("half", dist.LogNormal(0.0, 1.0))
        pyro.sample("y", dist.Normal(half, 1.0), obs=y)

    target = Target.of(clashing, (torch.tensor(1.5),))
    with pytest.raises(
        ValueError, match="site 'half': torch's modules have an attribute 'half', under which AutoNormal"
    ):
        build_guide(AutoNormal, target)
    assert build_guide(AutoDiagonalNormal, target)  # keeps all sites in one vector


def test_a_laplace_approximation_is_exact_where_the_posterior_is_gaussian_and_correlated() -> None:
    def pair(y: Tensor) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(0.0, 2.0))
        pyro.sample("y", dist.Normal(a + b, 0.3), obs=y)

    target = Target.of(pair, (torch.tensor(1.5),))
    found = fit(target, "laplace", num_steps=400, num_particles=1, num_replicas=1, engine="batched")
    precision = torch.tensor([[1.0, 0.0], [0.0, 0.25]]) + torch.ones(2, 2) / 0.09
    normal = found.guide().get_posterior()
    # the data are float32, the mode is good to the optimiser's last step
    torch.testing.assert_close(normal.covariance_matrix, torch.linalg.inv(precision.double()), rtol=1e-5, atol=1e-7)


def test_where_there_is_no_mode_a_laplace_approximation_is_refused_in_one_line() -> None:
    with pytest.raises(NoModeError, match=r"^eight_schools_centred: there is no Laplace .* no mode") as e:
        fit(eight_schools("centred"), "laplace", num_steps=8, num_particles=1, engine="batched")
    assert "\n" not in str(e.value)
