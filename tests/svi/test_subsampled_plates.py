"""Plates that subsample their rows, in model and guide: what is fitted and measured is the posterior given all rows."""

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal
from torch import Tensor
from torch.distributions import MultivariateNormal, constraints

from ppl_vi.guides.own import family_of
from ppl_vi.svi.fit import fit
from ppl_vi.svi.program import Particle, Program
from ppl_vi.svi.randomness import pseudo_random
from ppl_vi.svi.start import build_guide
from ppl_vi.target.log_density import Density
from ppl_vi.target.target import Target
from ppl_vi.truth import ground_truth

Guide = Callable[[Tensor], None]
ROWS = torch.tensor([0.9, -0.3, 1.7, 0.4, 2.1, 0.2, 1.1, -0.8, 0.6, 1.4, 0.1, 1.2], dtype=torch.float64)
NUM = len(ROWS)


def shared(y: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(y), subsample_size=4) as rows:
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y[rows])


def by_hand(y: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(y), subsample=torch.tensor([3, 1, 8])) as rows:
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y[rows])


def local(y: Tensor) -> None:
    """h given w and y is Normal(0.2 w + 0.8 y, 0.2 ** 0.5); y given w is Normal(w, 1.25 ** 0.5)."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(y), subsample_size=4):
        batch = pyro.subsample(y, event_dim=0)
        h = pyro.sample("h", dist.Normal(w, 1.0))
        pyro.sample("y", dist.Normal(h, 0.5), obs=batch)


# w's mean and standard deviation under the posterior, and m, s, a, b, t of the guide that is the posterior of `local`
W_MEAN, W_SD = float(ROWS.sum()) / (NUM + 1.25), (1 + NUM / 1.25) ** -0.5
POSTERIOR = (W_MEAN, W_SD, 0.2, 0.8, 0.2**0.5)
ELSEWHERE = (0.0, 1.0, 0.0, 0.5, 1.0)


def _stated(name: str, value: float, positive: bool = False) -> Tensor:
    kind = constraints.positive if positive else constraints.real
    return pyro.param(name, ROWS.new_tensor(value), constraint=kind)


def amortized(start: tuple[float, ...], part: int | None = 4) -> Guide:
    """A guide of `local` that infers h from its row, in a plate that takes a part of the rows, or None for all."""

    def guide(y: Tensor) -> None:
        loc, slope, weight = (_stated(name, start[k]) for k, name in ((0, "m"), (2, "a"), (3, "b")))
        w = pyro.sample("w", dist.Normal(loc, _stated("s", start[1], positive=True)))
        with pyro.plate("rows", len(y), subsample_size=part):
            h_loc = slope * w + weight * pyro.subsample(y, event_dim=0)
            pyro.sample("h", dist.Normal(h_loc, _stated("t", start[4], positive=True)))

    return guide


def evidence(noise_variance: float) -> float:
    """log p(y) where all of y share a Normal(0, 1) mean and have noise of their own, nats."""
    covariance = noise_variance * torch.eye(NUM, dtype=torch.float64) + 1.0
    return float(MultivariateNormal(torch.zeros_like(ROWS), covariance).log_prob(ROWS))


def particles(target: Target, guide: Guide, num: int) -> Particle:
    program = Program(target, build_guide(family_of(target, guide), target))
    noise = pseudo_random(program.draws, (num,), torch.Generator().manual_seed(3))
    return torch.func.vmap(lambda one: program.sample(program.initial, target.row(0), one))(noise)


@pytest.mark.parametrize("part", [4, None])
def test_at_the_posterior_each_draw_of_a_step_has_the_log_evidence_of_all_rows(part: int | None) -> None:
    """log p(y, z) - log q(z) is log p(y) at every z where q is the posterior, and scatters elsewhere."""
    target = Target.of(local, (ROWS,))
    assert [site.shape.numel() for site in target.latents] == [1, NUM]
    found = particles(target, amortized(POSTERIOR, part), 8)
    torch.testing.assert_close(found.log_joint - found.log_guide, ROWS.new_tensor(evidence(1.25)).expand(8))
    away = particles(target, amortized(ELSEWHERE, part), 8)
    assert float((away.log_joint - away.log_guide).std()) > 1


def test_an_amortized_guide_of_a_subsampled_plate_is_fitted_to_the_posterior() -> None:
    """The reverse KL in closed form from the fitted parameters: that of w, and that of each h averaged over w."""
    target = Target.of(local, (ROWS,))
    found = fit(target, family_of(target, amortized(ELSEWHERE)), num_particles=64, seed=1)
    assert found.status[0, 0] == "converged"
    assert found.draw(3, seed=0)["h"].shape == (1, 1, 3, NUM)
    guide: Any = found.guide()
    with torch.no_grad():
        m, s, a, b, t = (float(getattr(guide, guide._attributes[name])) for name in "msabt")
    kl = 0.5 * ((s / W_SD) ** 2 + ((m - W_MEAN) / W_SD) ** 2 - 1) - math.log(s / W_SD)
    apart = float(((a - 0.2) * m + (b - 0.8) * ROWS).square().sum()) + NUM * (a - 0.2) ** 2 * s**2
    kl += apart / 0.4 + NUM * (0.5 * (t**2 / 0.2 - 1) - 0.5 * math.log(t**2 / 0.2))
    assert 0 <= kl < 1e-3  # the tolerance of a converged fit


@pytest.mark.parametrize("model", [shared, by_hand])
def test_the_truth_is_that_of_all_rows(model: Guide) -> None:
    truth = ground_truth(Target.of(model, (ROWS,)))
    assert truth.log_evidence[0] == pytest.approx(evidence(1.0), abs=1e-8)
    assert float(truth.mean[0]) == pytest.approx(float(ROWS.sum()) / (NUM + 1), abs=1e-8)


def test_steps_draw_no_part_of_the_rows() -> None:
    """A step's noise is the latents' alone: for 12,000 rows a random part of them would take 12,000 numbers a draw."""
    target = Target.of(shared, (ROWS.repeat(1000),))
    program = Program(target, build_guide(AutoMultivariateNormal, target))
    assert [draw.shape.numel() for draw in program.draws] == [1]


def nested(y: Tensor) -> None:
    level = pyro.sample("level", dist.Normal(0.0, 2.0))
    with pyro.plate("groups", y.shape[0], subsample_size=2, dim=-2) as groups:
        own = pyro.sample("own", dist.Normal(level, 0.7))
        with pyro.plate("rows", y.shape[1], dim=-1):
            pyro.sample("y", dist.Normal(own, 0.5), obs=y[groups])


def indexed(y: Tensor) -> None:
    """A guide of `nested` whose parameters are picked by the groups that the plate takes."""
    locs, scales = pyro.param("locs", torch.zeros(4, 1)), _stated("scale", 0.3, positive=True)
    pyro.sample("level", dist.Normal(_stated("loc", 0.4), 0.5))
    with pyro.plate("groups", y.shape[0], subsample_size=2, dim=-2) as groups:
        pyro.sample("own", dist.Normal(locs[groups], scales))


def test_nested_plates_of_which_one_subsamples_have_the_density_of_all_groups_and_rows() -> None:
    """y is Gaussian: its covariance is 4 everywhere, 0.49 more within a group, and 0.25 more on the diagonal."""
    y = ROWS.reshape(4, 3)
    target = Target.of(nested, (y,))
    group = torch.arange(NUM) // 3
    covariance = 4.0 + 0.49 * (group[:, None] == group).double() + 0.25 * torch.eye(NUM, dtype=torch.float64)
    exact = float(MultivariateNormal(torch.zeros_like(ROWS), covariance).log_prob(ROWS))
    # Laplace's formula is exact for a Gaussian, whatever the point at which it is expanded
    density, zero = Density.of(target, 0), torch.zeros(5, dtype=torch.float64)
    precision = -torch.func.jacrev(torch.func.grad(density.of_one))(zero)
    slope = torch.func.grad(density.of_one)(zero)
    found = density.of_one(zero) + 0.5 * slope @ torch.linalg.solve(precision, slope)
    found = found + 0.5 * (5 * math.log(2 * math.pi) - torch.logdet(precision))
    assert float(found) == pytest.approx(exact, abs=1e-9)
    assert particles(target, indexed, 4).log_guide.shape == (4,)


def test_a_model_that_has_a_part_of_the_rows_alone_is_refused_with_the_mend() -> None:
    def model(y: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 100, subsample_size=len(y)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    with pytest.raises(ValueError, match=r"A plate takes all of its rows here, so give all"):
        Target.of(model, (ROWS,))
