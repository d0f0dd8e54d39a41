"""Guides whose networks are registered by `pyro.module`: their weights are learned, the user's own are left alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_vi import Fit, Target, compare, fit
from ppl_vi.guides import RefusedFamilyError
from ppl_vi.guides.own import family_of, has_network, has_nothing_to_fit
from ppl_vi.svi.start import build_guide

DATA = torch.tensor([0.2, 1.5, -0.7, 2.2, 0.9, 1.1], dtype=torch.float64)
SD = 0.2**0.5  # of h given y: precision 1 + 1 / 0.5^2
WEIGHT = 0.8  # the mean of h given y is 0.8 y
LOG_EVIDENCE = float(torch.distributions.Normal(0.0, 1.25**0.5).log_prob(DATA).sum())


def model(y: Tensor) -> None:
    """Independent rows, so that a linear network holds the posterior."""
    with pyro.plate("rows", len(y)):
        h = pyro.sample("h", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(h, 0.5), obs=y)


def linear(seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Linear(1, 1).to(dtype)


def draw(net: Callable[[Tensor], Tensor], y: Tensor) -> None:
    with pyro.plate("rows", len(y)):
        pyro.sample("h", dist.Normal(net(y.unsqueeze(-1)).squeeze(-1), SD))


NETWORK = linear()


def by_global(y: Tensor) -> None:
    pyro.module("net", NETWORK)
    draw(NETWORK, y)


def of_closure(net: nn.Module) -> Callable[[Tensor], None]:
    def guide(y: Tensor) -> None:
        pyro.module("net", net)
        draw(net, y)

    return guide


def given_network(net: nn.Module, y: Tensor) -> None:
    draw(pyro.module("net", net), y)


class Encoded:
    """As the tutorial on variational autoencoders writes it, but that it is no module."""

    def __init__(self, encoder: nn.Module) -> None:
        self.encoder = encoder

    def guide(self, y: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        draw(self.encoder, y)


class EncodedModule(nn.Module):
    """As the tutorial on variational autoencoders writes it; the decoder is the model's affair."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, linear(7)

    def guide(self, y: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        draw(self.encoder, y)


class Recurrent(nn.Module):
    """Hands torch its weights as a list; its linear map alone could hold the posterior."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.linear = nn.LSTM(1, 2).double(), linear()

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.lstm(x)[0].sum(-1, keepdim=True)


def pyro_linear() -> nn.Module:
    net = PyroModule[nn.Linear](1, 1).double()
    net.load_state_dict(linear().state_dict())
    return net


def twice_over(y: Tensor) -> None:
    """Calls the network before it is registered, and registers it under two names."""
    draw(NETWORK, y)
    pyro.module("net", NETWORK)
    pyro.module("again", NETWORK, update_module_params=True)


def guide_of(name: str) -> tuple[Callable[..., Any], nn.Module]:
    """A guide and the network that it registers."""
    net = linear()
    if name in ("global", "twice"):
        return by_global if name == "global" else twice_over, NETWORK
    if name == "pyro":
        net = pyro_linear()  # type: ignore[assignment]
    if name == "single precision":
        net = linear(dtype=torch.float32)
    if name == "partial":
        return partial(given_network, net), net
    if name in ("method", "module's method"):
        owner: Any = Encoded(net) if name == "method" else EncodedModule(net)
        return owner.guide, net
    return of_closure(net), net


@contextmanager
def unchanged(net: nn.Module) -> Iterator[None]:
    """Checks that a network and Pyro's parameter store are left to the last bit, and no gradient is left behind."""
    before = {name: (value, value.detach().clone()) for name, value in net.named_parameters()}
    store = dict(pyro.get_param_store().named_parameters())
    yield
    after = dict(net.named_parameters())
    assert list(after) == list(before)
    for name, (value, copied) in before.items():
        assert after[name] is value
        assert value.requires_grad
        assert value.grad is None
        assert torch.equal(value, copied)
    assert dict(pyro.get_param_store().named_parameters()) == store


def divergence(weight: Tensor, bias: Tensor) -> Tensor:
    """KL from a guide with a linear network to the posterior, nats: of equal variances, so the means' distance."""
    return ((weight.reshape(()) * DATA + bias.reshape(()) - WEIGHT * DATA) ** 2).sum() / (2 * SD**2)


NAMES = ["global", "closure", "partial", "method", "module's method", "pyro", "single precision", "twice"]


@pytest.mark.parametrize("name", NAMES)
def test_a_registered_network_is_learned_and_left_as_it_was(name: str) -> None:
    guide, net = guide_of(name)
    target = Target.of(model, (DATA,))
    weights = [value.detach().double().reshape(-1) for value in net.parameters()]
    with unchanged(net):
        fitted = fit(target, family_of(target, guide), num_replicas=2, num_particles=8, tolerance=1e-3)
        assert fitted.theta.shape == (1, 2, 2)
        assert all(torch.equal(fitted.program.initial, torch.cat(weights)) for _ in fitted.theta[0])
        assert has_network(fitted.program.guide)
        assert (fitted.status == "converged").all()
    assert float(divergence(*weights)) > 1  # it had something to learn
    for weight, bias in fitted.theta[0]:
        assert float(divergence(weight, bias)) < 1e-3  # the tolerance within which a fit is called converged


def test_comparing_finds_no_gap() -> None:
    guide, net = guide_of("module's method")
    with unchanged(net):
        found = compare(model, [guide], args=(DATA,), num_replicas=1, num_particles=16, engine="batched")
    (record,) = found.entries[0].records
    assert record["status"] == "converged"
    # the fit's tolerance, and the truth's standard error of 0.003 nats, stated in the table, five times
    for name in ("family_gap", "optimization_gap", "reverse_kl"):
        assert abs(record[name]) < 1e-3 + 5 * 0.003
    assert record["elbo"] == pytest.approx(LOG_EVIDENCE, abs=1e-3 + 5 * 0.003)


def test_the_engines_take_the_same_steps() -> None:
    target = Target.of(model, (DATA,))
    guide, net = guide_of("method")
    with unchanged(net):
        found = {
            engine: fit(target, family_of(target, guide), num_steps=5, num_replicas=1, num_particles=2, engine=engine)
            for engine in ("pyro", "batched", "compiled")
        }
    assert bool((found["batched"].theta != found["batched"].program.initial).all())
    for engine in ("pyro", "compiled"):  # a single replica draws the same noise in each: they differ by rounding
        torch.testing.assert_close(found[engine].theta, found["batched"].theta, rtol=1e-9, atol=1e-9)


def test_a_network_whose_weights_are_handed_over_as_a_list() -> None:
    net, target = Recurrent(), Target.of(model, (DATA,))
    with unchanged(net):
        guide = build_guide(family_of(target, of_closure(net)), target)
    given = {name: value + 0.1 for name, value in net.state_dict().items()}
    with torch.no_grad():
        for value, other in zip(guide.parameters(), given.values(), strict=True):
            value.copy_(other)
    net_of_given = Recurrent()
    net_of_given.load_state_dict(given)
    loc = pyro.poutine.trace(guide).get_trace(*target.row(0)).nodes["h"]["fn"].loc
    assert torch.equal(loc, net_of_given(DATA.unsqueeze(-1)).squeeze(-1))


def test_a_networks_buffers_are_left_as_they_were() -> None:
    """A batch normalisation moves its running means whenever it runs; those here are in single precision."""
    net, target = nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 1)), Target.of(model, (DATA,))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    guide = build_guide(family_of(target, of_closure(net)), target)
    loc = pyro.poutine.trace(guide).get_trace(*target.row(0)).nodes["h"]["fn"].loc
    scaled = (DATA - DATA.mean()) / (DATA.var(correction=0) + 1e-5).sqrt()
    expected = net[1].weight.double().reshape(()) * scaled + net[1].bias.double()
    torch.testing.assert_close(loc, expected, rtol=1e-12, atol=1e-13)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_parameters_keep_the_names_under_which_fits_were_saved() -> None:
    target = Target.of(chained, (torch.ones(3, 2),))
    guide = build_guide(family_of(target, shares_parameters), target)
    names = [name for name, _ in guide.named_parameters()]
    assert names == [f"param_{i}_{name}_unconstrained" for i, name in enumerate(("loc1", "loc2", "spread"))]


def test_replicas_and_instances_have_weights_of_their_own() -> None:
    target = Target.of(model, (DATA,))
    guide, net = guide_of("closure")
    first, second = (build_guide(family_of(target, guide), target) for _ in range(2))
    with unchanged(net), torch.no_grad():
        for value in first.parameters():
            value.fill_(0.5)
    assert all(torch.equal(value, own) for value, own in zip(second.parameters(), net.parameters(), strict=True))
    fitted = fit(target, family_of(target, guide), num_steps=5, num_replicas=2, num_particles=2)
    assert not torch.equal(fitted.theta[0, 0], fitted.theta[0, 1])  # by draws of their own


def test_a_saved_fit_comes_back(tmp_path: Path) -> None:
    target = Target.of(model, (DATA,))
    guide, net = guide_of("method")
    fitted = fit(target, family_of(target, guide), num_steps=20, num_replicas=2, num_particles=2)
    fitted.save(tmp_path / "fit.zip")
    with unchanged(net):
        loaded = Fit.load(tmp_path / "fit.zip", target, family=guide)
        assert torch.equal(loaded.theta, fitted.theta)
        assert torch.equal(loaded.draw(3, seed=0)["h"], fitted.draw(3, seed=0)["h"])
    weight, bias = loaded.theta[0, 1]
    loc = pyro.poutine.trace(loaded.guide(0, 1)).get_trace().nodes["h"]["fn"].loc.detach()
    torch.testing.assert_close(loc, weight * DATA + bias, rtol=1e-14, atol=1e-15)


def test_a_network_that_is_not_registered_is_refused_and_one_that_is_frozen_is_not() -> None:
    net, target = linear(), Target.of(model, (DATA,))
    family = family_of(target, lambda y: draw(net, y))
    with unchanged(net), pytest.raises(RefusedFamilyError, match=r"a Linear, without registering it.*pyro\.module\("):
        build_guide(family, target)
    loose = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    with pytest.raises(RefusedFamilyError, match=r"a tensor of shape \(6,\) that requires a gradient"):
        build_guide(family_of(target, lambda y: draw(lambda _: loose.unsqueeze(-1), y)), target)
    net.requires_grad_(False)
    assert has_nothing_to_fit(build_guide(family, target))


def test_a_network_is_restored_where_the_guide_fails() -> None:
    net, target = linear(), Target.of(model, (DATA,))

    def guide(y: Tensor) -> None:
        pyro.module("net", net)
        draw(net, y)
        raise ZeroDivisionError

    with unchanged(net), pytest.raises(ValueError, match="raised ZeroDivisionError at or after site 'h'"):
        fit(target, family_of(target, guide), num_steps=2)


# ---- parameters that rows share


def chained(y: Tensor) -> None:
    with pyro.plate("rows", len(y)):
        first = pyro.sample("first", dist.MultivariateNormal(torch.ones(2), torch.eye(2)))
        second = pyro.sample("second", dist.MultivariateNormal(first, torch.eye(2)))
        pyro.sample("y", dist.MultivariateNormal(second, torch.eye(2)), obs=y)


def shares_parameters(y: Tensor) -> None:
    locs = [pyro.param(f"loc{i}", torch.full((2,), 3.0)) for i in (1, 2)]
    spread = pyro.param("spread", torch.full((2,), 2.0), constraint=constraints.positive)
    with pyro.plate("rows", len(y)):
        pyro.sample("first", dist.MultivariateNormal(locs[0], torch.eye(2)))
        pyro.sample("second", dist.MultivariateNormal(locs[1], torch.diag(spread)))


def test_the_best_of_a_guide_whose_rows_share_their_parameters() -> None:
    """In each coordinate (first, second) has precision ((2, -1), (-1, 2)) and mean (2 + y, 1 + 2 y) / 3, so the best
    shared locations are the means of those and the best variance of the second is 1/2."""
    y = torch.tensor([[0.8, 1.1], [1.3, 0.7], [0.9, 1.0]], dtype=torch.float64)
    means = torch.stack([(2 + y) / 3, (1 + 2 * y) / 3], -1)
    precision = torch.tensor([[2.0, -1.0], [-1.0, 2.0]], dtype=torch.float64)
    exact = dist.MultivariateNormal(means, precision_matrix=precision)
    best = dist.MultivariateNormal(means.mean(0), torch.diag(torch.tensor([1.0, 0.5], dtype=torch.float64)))
    family_gap = float(torch.distributions.kl_divergence(best.expand(means.shape[:-1]), exact).sum())
    found = compare(chained, [shares_parameters], args=(y,), num_replicas=1, num_particles=16, engine="batched")
    (record,) = found.entries[0].records
    assert record["family_gap"] == pytest.approx(family_gap, abs=5 * 0.003)  # five standard errors of the truth
