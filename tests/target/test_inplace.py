"""Models that write into tensors of their own: the same density, for many draws at once."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import special, stats
from torch.func import vmap

from ppl_vi.target.isolation import isolated
from ppl_vi.target.target import Target
from ppl_vi.truth import ground_truth


def writes(y):
    a, b = (pyro.sample(name, dist.Normal(0.3, 1.5)) for name in "ab")
    mean = torch.zeros(3)
    mean[0], mean[1] = a, b
    mean[2] = a * b
    mean[mean > 1] = 1.0
    pyro.sample("y", dist.Normal(mean, 0.8).to_event(1), obs=y)


def written(values, y):
    a, b = values["a"], values["b"]
    prior = stats.norm.logpdf([a, b], 0.3, 1.5).sum()
    return prior + stats.norm.logpdf(y, np.minimum([a, b, a * b], 1.0), 0.8).sum()


def ordered(y):
    cuts = pyro.sample("cuts", dist.Normal(torch.tensor([-1.0, 1.0]), 0.2).to_event(1))
    pyro.sample("y", dist.OrderedLogistic(torch.zeros(3), cuts).to_event(1), obs=y)


def ordered_written(values, y):
    cuts = values["cuts"]
    share = np.diff([0.0, *special.expit(cuts), 1.0])
    return stats.norm.logpdf(cuts, [-1, 1], 0.2).sum() + np.log(share)[y].sum()


def multinomial(y):
    p = pyro.sample("p", dist.Beta(2.0, 3.0))
    with pyro.plate("n", 2):
        pyro.sample("y", dist.Multinomial(7, torch.stack([p, 1 - p])), obs=y)


def multinomial_written(values, y):
    p = values["p"]
    return stats.beta.logpdf(p, 2, 3) + stats.binom.logpmf(y[:, 0], 7, p).sum()


@pytest.mark.parametrize(
    ("model", "y", "by_hand"),
    [
        (writes, [0.5, 1.0, 0.2], written),
        (ordered, [0, 2, 1], ordered_written),
        (multinomial, [[7.0, 0.0], [3.0, 4.0]], multinomial_written),
    ],
)
def test_what_a_model_writes_into_it_writes_for_each_draw(model, y, by_hand):
    data = torch.from_numpy(np.array(y))
    target = Target.of(model, (data,))
    u = torch.tensor([[0.4, 1.3], [-0.7, 0.2], [1.1, 1.9]], dtype=torch.float64)[:, : target.dim]
    values, _ = target.constrain(u)
    found = target.log_joint({name: value[None] for name, value in values.items()})[0]
    for i in range(3):
        expected = by_hand({name: value[i].numpy() for name, value in values.items()}, np.array(y))
        assert float(found[i]) == pytest.approx(expected, rel=1e-12)
    with isolated():  # validation branches on data
        density = vmap(target.log_density_of_row, in_dims=(0, None))
        slope = vmap(torch.func.grad(target.log_density_of_row), in_dims=(0, None))(u, *target.row(0))
        step = 1e-6 * torch.eye(target.dim, dtype=u.dtype)
        for d in range(target.dim):  # central differences: 1e-12 by the step, 1e-9 by rounding
            up, down = (density(u + s * step[d], *target.row(0)) for s in (1, -1))
            torch.testing.assert_close(slope[:, d], (up - down) / 2e-6, rtol=1e-6, atol=1e-6)


def test_a_model_that_branches_on_a_draw_has_no_truth_and_is_told_what_to_do():
    def branching(y):
        a, _ = (pyro.sample(name, dist.Normal(0.0, 1.0)) for name in "ab")
        pyro.sample("y", dist.Normal(a, 1.0 if a > 0 else 2.0).expand([3]).to_event(1), obs=y)

    with pytest.raises(
        ValueError, match=r"^branching: .* many points at once, at or after site '\w+': .* choose by torch.where$"
    ):
        ground_truth(Target.of(branching, (torch.zeros(3),)))
