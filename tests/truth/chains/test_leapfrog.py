"""Leapfrog steps as machine code, against the same steps operation by operation."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_vi.compiler import toolchain
from ppl_vi.target.target import Target
from ppl_vi.truth.chains.leapfrog import ChainState, run_by_operations, run_trajectories
from ppl_vi.truth.chains.reparametrisation import Reparametrisation
from ppl_vi.truth.chains.site_terms import GaussianSiteTerm

REAL = torch.float64


def groups(y):
    scale = pyro.sample("scale", dist.HalfNormal(2.0))
    factor = pyro.sample("factor", dist.LKJCholesky(2, 1.5))
    with pyro.plate("groups", 3):
        z = pyro.sample("z", dist.Normal(1.0, scale))
        pyro.sample("y", dist.MultivariateNormal(z[:, None].expand(3, 2), scale_tril=scale * factor), obs=y)


TARGET = Target.of(groups, (torch.tensor([[0.3, -0.2], [1.5, 0.9], [0.1, 2.2]], dtype=REAL),))


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=REAL)


def start_of(num):
    begin = Reparametrisation.of(TARGET, 0)
    u = random(num, TARGET.dim) / 2
    value, slope = begin.density.slope(u)
    return begin, ChainState(u, value, slope), random(num, TARGET.dim, seed=1)


@pytest.mark.parametrize("num", [3, 21])
def test_machine_code_takes_the_same_steps(num):
    begin, at, momentum = start_of(num)
    step_size, factor = 0.005 + 0.01 * random(num, 1).abs(), torch.linalg.cholesky(torch.cov(random(TARGET.dim, 40)))
    term = GaussianSiteTerm(random(3, 2), random(3, 2).square(), random(3, 2, 1) / 2)
    fitted = begin.with_site_terms({"z": term})
    fast = [run_trajectories(one.density, at, momentum, step_size, factor, 7) for one in (begin, fitted)]
    assert all(begin.density.kernels.values()), "nothing was compiled"
    for (found, found_momentum), site_terms in zip(fast, (begin.site_terms, fitted.site_terms), strict=True):
        density = Reparametrisation.of(TARGET, 0).with_site_terms(site_terms).density
        slow, slow_momentum = run_by_operations(density, at, momentum, step_size, factor, 7)
        torch.testing.assert_close(found_momentum, slow_momentum, rtol=1e-10, atol=1e-10)
        for name in ("u", "value", "slope"):
            torch.testing.assert_close(getattr(found, name), getattr(slow, name), rtol=1e-10, atol=1e-10)
    assert float((fast[0][0].u - fast[1][0].u).abs().max()) > 1e-3
    assert float((fast[0][0].u - at.u).abs().max()) > 1e-2


def test_without_a_compiler_the_steps_are_taken_nevertheless(monkeypatch):
    def missing():
        raise toolchain.NoCompilerError("no C++ compiler")

    begin, at, momentum = start_of(4)
    monkeypatch.setattr(toolchain, "compiler", missing)
    step_size, factor = torch.full((4, 1), 0.05, dtype=REAL), torch.eye(TARGET.dim, dtype=REAL)
    end, _ = run_trajectories(begin.density, at, momentum, step_size, factor, 3)
    assert begin.density.kernels == {4: None}
    assert end.u.isfinite().all()
