"""Guides that are fitted already are measured as they are, and nothing of the user's is changed.

The model is conjugate, so that the divergence of a normal guide from the posterior is known in closed form. The guides
are trained by Pyro's own SVI, as users train theirs, in single precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.contrib.easyguide import EasyGuide
from pyro.distributions.transforms import affine_coupling, iterated
from pyro.infer import SVI, Trace_ELBO, autoguide
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn
from torch.distributions import constraints

import ppl_vi
from ppl_vi import Target, fitted, ground_truth, score
from ppl_vi.guides import RefusedFamilyError
from ppl_vi.guides.own import family_of
from ppl_vi.metrics.scorecard import Scorecard
from ppl_vi.svi.fit import fit
from ppl_vi.svi.start import build_guide

X, Y = torch.tensor([0.0, 1.0, 2.0, 3.0]), torch.tensor([0.3, 1.2, 2.1, 2.5])
ONE_PRIOR = 2.0


def line(x: Tensor, y: Tensor) -> None:
    a = pyro.sample("a", dist.Normal(0.5, ONE_PRIOR))
    b = pyro.sample("b", dist.Normal(0.0, ONE_PRIOR))
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Normal(a + b * x, 0.7), obs=y)


def mean(y: Tensor) -> None:
    a = pyro.sample("a", dist.Normal(0.5, ONE_PRIOR))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(a, 0.7), obs=y)


def posterior(dim: int) -> dist.MultivariateNormal:
    """The posterior of `line` or of `mean`, by linear algebra."""
    design = torch.stack([torch.ones(4), X], 1)[:, :dim].double()
    precision = torch.eye(dim).double() / ONE_PRIOR**2 + design.mT @ design / 0.7**2
    prior_mean = torch.tensor([0.5, 0.0])[:dim].double()
    slope = prior_mean / ONE_PRIOR**2 + design.mT @ Y.double() / 0.7**2
    return dist.MultivariateNormal(torch.linalg.solve(precision, slope), precision_matrix=precision)


def exact(loc: Tensor, factor: Tensor) -> float:
    """KL(N(loc, factor factor') || posterior), nats."""
    q = dist.MultivariateNormal(loc.double(), scale_tril=factor.double())
    return float(torch.distributions.kl_divergence(q, posterior(len(loc))))


# ---- guides, and what they are in closed form


class Module(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.loc = PyroParam(torch.tensor([0.1, 0.6]))
        self.scale = PyroParam(torch.tensor([0.5, 0.3]), constraints.positive)

    def forward(self, x: Tensor, y: Tensor) -> None:
        pyro.sample("a", dist.Normal(self.loc[0], self.scale[0]))
        pyro.sample("b", dist.Normal(self.loc[1], self.scale[1]))


class Easy(EasyGuide):
    """A part of its parameters is stated by `pyro.param`."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.loc = PyroParam(torch.tensor([0.1, 0.6]))

    def guide(self, x: Tensor, y: Tensor) -> None:
        group = self.group(match="a|b")
        scale = pyro.param("scale", torch.tensor([0.5, 0.3]), constraint=constraints.positive)
        group.sample("both", dist.Normal(self.loc, scale).to_event(1))


def function(x: Tensor, y: Tensor) -> None:
    loc = pyro.param("loc", lambda: torch.tensor([0.1, 0.6]))
    scale = pyro.param("scale", torch.tensor([0.5, 0.3]), constraint=constraints.positive)
    pyro.sample("a", dist.Normal(loc[0], scale[0]))
    pyro.sample("b", dist.Normal(loc[1], scale[1]))


class Amortized:
    """A guide as a method, with a network that `pyro.module` states."""

    def __init__(self) -> None:
        torch.manual_seed(3)
        self.net = nn.Linear(4, 4)

    def guide(self, x: Tensor, y: Tensor) -> None:
        pyro.module("net", self.net)
        out = self.net(y)
        pyro.sample("a", dist.Normal(out[0], out[1].exp()))
        pyro.sample("b", dist.Normal(out[2], out[3].exp()))


def trained(guide: Any, num_steps: int = 60) -> Any:
    svi = SVI(line, guide, pyro.optim.Adam({"lr": 0.03}), Trace_ELBO())
    for _ in range(num_steps):
        svi.step(X, Y)
    return guide


def by_list() -> Any:
    guide = autoguide.AutoGuideList(line)
    guide.append(autoguide.AutoNormal(poutine.block(line, expose=["a"])))
    guide.append(autoguide.AutoMultivariateNormal(poutine.block(line, expose=["b"])))
    return trained(guide)


def part(x: Tensor, y: Tensor) -> None:
    scale = pyro.param("part_scale", torch.tensor(0.3), constraint=constraints.positive)
    pyro.sample("b", dist.Normal(pyro.param("part_loc", torch.tensor(0.6)), scale))


def by_list_with_function() -> Any:
    guide = autoguide.AutoGuideList(line)
    guide.append(autoguide.AutoNormal(poutine.block(line, expose=["a"])))
    guide.append(part)
    return trained(guide)


def of_laplace() -> Any:
    return trained(autoguide.AutoLaplaceApproximation(line), 20).laplace_approximation(X, Y)


def of_independent(guide: Any) -> tuple[Tensor, Tensor]:
    """Location and scales, as users read them off a guide by its quantiles."""
    found = guide.quantiles([0.5, 0.8413447])
    loc, high = (torch.stack([torch.as_tensor(found[name][i]).reshape(()) for name in "ab"]).double() for i in range(2))
    return loc, torch.diag(high - loc)


def of_multivariate(guide: Any) -> tuple[Tensor, Tensor]:
    normal = guide.get_posterior()
    return normal.mean.detach(), torch.linalg.cholesky(normal.covariance_matrix.detach().double())


def of_list(guide: Any) -> tuple[Tensor, Tensor]:
    found = [part.quantiles([0.5, 0.8413447])[name].reshape(2) for part, name in zip(guide, "ab", strict=True)]
    loc, high = torch.stack(found, 1).double()
    return loc, torch.diag(high - loc)


def of_list_with_function(guide: Any) -> tuple[Tensor, Tensor]:
    loc, high = guide[0].quantiles([0.5, 0.8413447])["a"].reshape(2).double()
    scale = [high - loc, pyro.param("part_scale").detach().double()]
    return torch.stack([loc, pyro.param("part_loc").detach().double()]), torch.diag(torch.stack(scale))


def of_module(guide: Any) -> tuple[Tensor, Tensor]:
    return guide.loc.detach(), torch.diag(guide.scale.detach().double())


def of_easy(guide: Any) -> tuple[Tensor, Tensor]:
    return guide.loc.detach(), torch.diag(pyro.param("scale").detach().double())


def of_function(guide: Any) -> tuple[Tensor, Tensor]:
    return pyro.param("loc").detach(), torch.diag(pyro.param("scale").detach().double())


def of_amortized(guide: Any) -> tuple[Tensor, Tensor]:
    out = guide.__self__.net(Y).detach().double()
    return out[[0, 2]], torch.diag(out[[1, 3]].exp())


# how each is made, and its mean and the Cholesky factor of its covariance; None where it is no Gaussian
GAUSSIAN: dict[str, tuple[Callable[[], Any], Callable[[Any], tuple[Tensor, Tensor]]]] = {
    "normal": (lambda: trained(autoguide.AutoNormal(line)), of_independent),
    "diagonal": (lambda: trained(autoguide.AutoDiagonalNormal(line)), of_independent),
    "multivariate": (lambda: trained(autoguide.AutoMultivariateNormal(line)), of_multivariate),
    "low rank": (lambda: trained(autoguide.AutoLowRankMultivariateNormal(line, rank=1)), of_multivariate),
    "laplace": (of_laplace, of_multivariate),
    "list": (by_list, of_list),
    "list with a function": (by_list_with_function, of_list_with_function),
    "module": (lambda: trained(Module()), of_module),
    "easy": (lambda: trained(Easy(line)), of_easy),
    "function": (lambda: trained(function), of_function),
    "method": (lambda: trained(Amortized().guide), of_amortized),
}
OTHERS: dict[str, Callable[[], Any]] = {
    "structured": lambda: trained(autoguide.AutoStructured(line)),
    "gaussian": lambda: trained(autoguide.AutoGaussian(line)),
    "messenger": lambda: trained(autoguide.AutoNormalMessenger(line)),
    "hierarchical": lambda: trained(autoguide.AutoHierarchicalNormalMessenger(line)),
    "flow": lambda: trained(autoguide.AutoIAFNormal(line, hidden_dim=[8], num_transforms=2)),
    "coupling": lambda: trained(autoguide.AutoNormalizingFlow(line, partial(iterated, 1, affine_coupling))),
}
TARGET = Target.of(line, (X, Y))


@pytest.fixture(scope="module")
def truth() -> Any:
    return ground_truth(TARGET)


@pytest.fixture(autouse=True)
def empty_store() -> Iterator[None]:
    with pyro.get_param_store().scope():
        torch.manual_seed(5)
        yield


def state(guide: Any) -> dict[str, Any]:
    """All that a user may see of a guide and of the parameter store."""
    owner = guide if isinstance(guide, nn.Module) else getattr(getattr(guide, "__self__", None), "net", None)
    own = {} if owner is None else dict(owner.state_dict(keep_vars=True))
    return {f"own {name}": value for name, value in own.items()} | {
        f"store {name}": value for name, value in pyro.get_param_store().named_parameters()
    }


def digits(found: dict[str, Any]) -> dict[str, bytes]:
    return {name: value.detach().numpy().tobytes() for name, value in found.items()}


def measured(guide: Any, truth: Any) -> Scorecard:
    return score(fit(TARGET, guide), truth, num_draws=100)


def value(card: Scorecard, name: str) -> float:
    return float(card.scores[name].value[0, 0])


@pytest.mark.parametrize("kind", GAUSSIAN)
def test_a_trained_guide_is_as_far_as_its_own_parameters_say(kind: str, truth: Any) -> None:
    make, closed_form = GAUSSIAN[kind]
    guide = make()
    expected = exact(*closed_form(guide))
    held = state(guide)
    before = digits(held)
    card = measured(fitted(guide), truth)
    # 1e-5: quantiles are read off in single precision
    assert value(card, "reverse_kl") == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert expected > 1e-3  # at the posterior itself, wrong code would pass
    after = state(guide)
    assert digits(after) == before
    assert all(after[name] is tensor for name, tensor in held.items())
    assert card.fit.num_replicas == 1
    assert card.fit.status.tolist() == [["as_given"]]
    parts = [value(card, name) for name in ("family_gap", "start_gap", "optimization_gap")]
    assert math.fsum(part for part in parts if not math.isnan(part)) == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("kind", [*GAUSSIAN, *OTHERS])
def test_the_guide_that_is_given_back_is_an_ordinary_one_with_the_same_density(kind: str, truth: Any) -> None:
    guide = OTHERS[kind]() if kind in OTHERS else GAUSSIAN[kind][0]()
    found = fit(TARGET, fitted(guide))
    with pyro.get_param_store().scope(), torch.no_grad():
        torch.set_default_dtype(torch.float64)  # AutoGaussian makes tensors of its own
        trace = poutine.trace(found.guide()).get_trace(X, Y)
        torch.set_default_dtype(torch.float32)
    point = {name: trace.nodes[name]["value"] for name in "ab"}
    same = found.log_prob({name: value[None, None, None] for name, value in point.items()})
    trace.compute_log_prob()
    drawn = sum(node["log_prob_sum"] for node in trace.nodes.values() if _is_drawn(node)).detach()
    assert float(drawn) == pytest.approx(float(same), abs=1e-9)
    elbo, error = own_elbo(guide)
    assert value(score(found, truth, num_draws=100), "elbo") == pytest.approx(elbo, abs=5 * error)


def _is_drawn(node: Any) -> bool:
    return node["type"] == "sample" and not node["is_observed"]


@torch.no_grad()
def own_elbo(guide: Any) -> tuple[float, float]:
    """The ELBO of a user's own guide, by Pyro, with its standard error."""
    torch.manual_seed(1)
    one = Trace_ELBO()
    losses = torch.tensor([one.loss(line, guide, X, Y) for _ in range(300)], dtype=torch.float64)
    return -float(losses.mean()), float(losses.std() / len(losses) ** 0.5)


@pytest.mark.parametrize("of", [autoguide.AutoNormal, autoguide.AutoMultivariateNormal])
def test_a_fresh_fit_with_the_same_parameters_is_as_far(of: Any, truth: Any) -> None:
    guide = trained(of(line))
    card = measured(fitted(guide), truth)
    fresh = fit(TARGET, of, num_steps=8)
    fresh.parameters.update({name: one.double()[None, None] for name, one in guide.state_dict().items()})
    again = score(fresh, truth, num_draws=100)
    assert value(again, "reverse_kl") == pytest.approx(value(card, "reverse_kl"), rel=1e-9)


@pytest.mark.parametrize("make", [Module, lambda: function])
def test_a_fresh_fit_of_a_module_or_function_with_the_same_parameters_is_as_far(make: Any, truth: Any) -> None:
    guide = trained(make())
    card = measured(fitted(guide), truth)
    with pyro.get_param_store().scope():
        fresh = fit(TARGET, make(), num_steps=8)
    own = guide.state_dict() if isinstance(guide, nn.Module) else dict(pyro.get_param_store().named_parameters())
    for name in fresh.parameters:
        (value_of,) = [one for short, one in own.items() if short.removesuffix("_unconstrained") in name]
        fresh.parameters[name] = value_of.detach().double()[None, None]
    assert value(score(fresh, truth, num_draws=100), "reverse_kl") == pytest.approx(value(card, "reverse_kl"), rel=1e-9)


def test_one_latent_is_measured_by_quadrature_likewise() -> None:
    target = Target.of(mean, (Y,))
    guide = autoguide.AutoNormal(mean)
    svi = SVI(mean, guide, pyro.optim.Adam({"lr": 0.03}), Trace_ELBO())
    for _ in range(40):
        svi.step(Y)
    loc = guide.locs.a.detach()[None]
    expected = exact(loc, guide.scales.a.detach().double()[None, None])
    card = score(fit(target, fitted(guide)), ground_truth(target), num_draws=100)
    assert value(card, "reverse_kl") == pytest.approx(expected, rel=1e-6)
    fresh = fit(target, autoguide.AutoNormal, num_steps=8)
    fresh.parameters.update({name: one.double()[None, None] for name, one in guide.state_dict().items()})
    again = score(fresh, ground_truth(target), num_draws=100)
    assert value(again, "reverse_kl") == pytest.approx(value(card, "reverse_kl"), rel=1e-9)
    assert value(card, "family_gap") == pytest.approx(0.0, abs=1e-9)


def test_a_flow_keeps_the_order_of_its_latents() -> None:
    """Half of the orders differ from the one that a new flow draws; twelve seeds make that sure."""
    for seed in range(12):
        torch.manual_seed(seed)
        pyro.clear_param_store()
        guide = autoguide.AutoIAFNormal(line, hidden_dim=[4])
        guide(X, Y)
        family = family_of(TARGET, fitted(guide))
        built: Any = build_guide(family, TARGET)
        assert torch.equal(built.transform.parts[0].arn.permutation, guide.transform.parts[0].arn.permutation)


def test_what_is_taken_does_not_change_when_the_guide_is_trained_further(truth: Any) -> None:
    guide = trained(autoguide.AutoNormal(line))
    taken, expected = fitted(guide), exact(*of_independent(guide))
    trained(guide, 30)
    assert exact(*of_independent(guide)) != pytest.approx(expected, rel=1e-2)
    assert value(measured(taken, truth), "reverse_kl") == pytest.approx(expected, rel=1e-4)


def test_a_guide_that_is_not_marked_is_fitted_from_where_it_stands() -> None:
    guide = trained(autoguide.AutoNormal(line))
    before = digits(state(guide))
    found = fit(TARGET, guide, num_steps=100, num_replicas=3)
    for name, one in guide.state_dict().items():
        assert torch.equal(found.initial[name][0, 0], one.double())
        assert not torch.equal(found.initial[name][0, 1], one.double())
    assert digits(state(guide)) == before
    assert "as_given" not in found.status


def test_a_guide_that_was_never_called_is_fitted_from_its_own_initial_values() -> None:
    init = autoguide.initialization.init_to_value(values={"a": torch.tensor(0.7), "b": torch.tensor(-0.2)})
    guide = autoguide.AutoNormal(line, init_loc_fn=init, init_scale=0.25)
    found = fit(TARGET, guide, num_steps=16)
    assert float(found.initial["locs.a_unconstrained"][0, 0]) == pytest.approx(0.7, abs=1e-7)
    assert float(found.initial["locs.b_unconstrained"][0, 0]) == pytest.approx(-0.2, abs=1e-7)
    assert torch.nn.functional.softplus(found.initial["scales.a_unconstrained"]).item() == pytest.approx(0.25)
    assert guide.prototype_trace is None
    assert guide.model.func.args[1] is line
    assert not list(pyro.get_param_store())


def test_zero_steps_measure_every_guide_with_the_values_that_it_has() -> None:
    trained(function)
    expected = exact(*of_function(function))
    result = ppl_vi.compare(
        line, {"mine": function, "class": autoguide.AutoNormal}, (X, Y), num_steps=0, num_replicas=2
    )
    mine, of_class = result.records()
    assert mine["reverse_kl"] == pytest.approx(expected, rel=1e-5)
    assert (mine["status"], len(mine["replicas"])) == ("as_given", 1)
    assert (of_class["status"], len(of_class["replicas"])) == ("as_given", 2)
    assert "as given" in str(result)
    assert set(result.plot()) == {"marginals", "gaps", "reverse_kl", "elbo"}
    assert result.to_datatree()["mine"]["loss_history"]["loss"].shape == (1, 0)


def test_two_guides_of_one_class_have_values_of_their_own() -> None:
    """In Pyro the first has the second's values as soon as it is called, since the store knows both by one name."""
    first = trained(autoguide.AutoNormal(line), 20)
    expected = [exact(*of_independent(first))]
    pyro.clear_param_store()
    second = trained(autoguide.AutoNormal(line), 90)
    expected.append(exact(*of_independent(second)))
    with pytest.warns(UserWarning, match="AutoNormal is measured with the values that it holds itself") as said:
        guides = {"first": fitted(first), "again": fitted(first), "second": fitted(second)}
    assert [one.filename for one in said] == [__file__] * 2  # the user's line, not one of the package
    found = [record["reverse_kl"] for record in ppl_vi.compare(line, guides, (X, Y)).records()]
    assert found == pytest.approx([expected[0], expected[0], expected[1]], rel=1e-5)


def test_a_guide_that_was_never_called_has_the_values_that_the_store_has_under_its_name(truth: Any) -> None:
    guide = trained(autoguide.AutoNormal(line))
    expected = exact(*of_independent(guide))
    assert value(measured(fitted(autoguide.AutoNormal(line)), truth), "reverse_kl") == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["normal", "module"])
def test_a_guide_that_was_frozen_is_a_member_of_its_family_all_the_same(kind: str, truth: Any) -> None:
    make, closed_form = GAUSSIAN[kind]
    guide = make().requires_grad_(False)
    card = measured(fitted(guide), truth)
    assert value(card, "reverse_kl") == pytest.approx(exact(*closed_form(guide)), rel=1e-5)
    precision = posterior(2).precision_matrix
    best = float((torch.diagonal(precision).log().sum() - torch.logdet(precision)) / 2)  # of all independent normals
    assert value(card, "family_gap") == pytest.approx(best, abs=1e-6)
    assert not any(one.requires_grad for one in guide.parameters())


def test_parameters_that_are_local_to_a_module_are_taken_from_there(truth: Any) -> None:
    with pyro.settings.context(module_local_params=True):
        guide = trained(Module())
        assert not list(pyro.get_param_store())
        expected = exact(*of_module(guide))
        inside = value(measured(fitted(guide), truth), "reverse_kl")
    outside = value(measured(fitted(guide), truth), "reverse_kl")
    assert [inside, outside] == pytest.approx([expected, expected], rel=1e-6)


def test_double_precision_stays() -> None:
    guide = trained(autoguide.AutoNormal(line))
    pyro.clear_param_store()
    wide = guide.locs.a_unconstrained.detach().double() + 1e-12
    guide.locs.a_unconstrained = nn.Parameter(wide)
    found = fit(TARGET, fitted(guide))
    assert float(found.parameters["locs.a_unconstrained"]) == float(wide)


def test_a_model_s_own_parameters_are_those_that_the_store_has() -> None:
    def model(y: Tensor) -> None:
        wide = pyro.param("wide", torch.tensor(1.5), constraint=constraints.positive)
        a = pyro.sample("a", dist.Normal(0.0, wide))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(a, 0.7), obs=y)

    guide = autoguide.AutoNormal(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.03}), Trace_ELBO())
    for _ in range(50):
        svi.step(Y)
    wide = pyro.param("wide").detach().double()
    result = ppl_vi.compare(model, {"mine": fitted(guide)}, (Y,))
    marginal = dist.MultivariateNormal(torch.zeros(4).double(), torch.eye(4).double() * 0.7**2 + wide**2)
    assert float(wide) != pytest.approx(1.5, abs=0.1)
    assert float(result.truth.log_evidence[0]) == pytest.approx(float(marginal.log_prob(Y.double())), abs=1e-6)
    with pyro.get_param_store().scope():
        only_guide = fitted(guide)
    with pytest.raises(ValueError, match="has no value of the model's parameter 'wide'"):
        ppl_vi.compare(model, {"mine": only_guide}, (Y,))


def test_saved_fits_of_fitted_guides_are_found_again(tmp_path: Path) -> None:
    guide = trained(autoguide.AutoNormal(line))
    found = fit(TARGET, fitted(guide))
    found.save(tmp_path / "fit")
    again = ppl_vi.Fit.load(tmp_path / "fit", TARGET)
    assert torch.equal(again.theta, found.theta)
    assert again.status.tolist() == [["as_given"]]
    assert again.elbo_history.shape == (0, 1, 1)


def test_a_saved_flow_is_not_taken_for_one_of_its_class(tmp_path: Path) -> None:
    """Two flows of one class differ by the order of their latents, which the file does not hold."""
    guide = trained(autoguide.AutoIAFNormal(line), 5)
    found = fit(TARGET, fitted(guide))
    found.save(tmp_path / "fit")
    with pytest.raises(ValueError, match=r"AutoIAFNormal \(an object\)' .* give it by family="):
        ppl_vi.Fit.load(tmp_path / "fit", TARGET)
    again = ppl_vi.Fit.load(tmp_path / "fit", TARGET, guide)
    draws = found.draw(5, seed=0)
    assert torch.equal(again.log_prob(draws), found.log_prob(draws))


# ---- what can't be measured


def other(x: Tensor, y: Tensor) -> None:
    pyro.sample("c", dist.Normal(0.0, 1.0))


def positive(x: Tensor, y: Tensor) -> None:
    pyro.sample("a", dist.HalfNormal(1.0))
    pyro.sample("b", dist.Normal(0.0, 1.0))


def local(x: Tensor, y: Tensor) -> None:
    pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("b", dist.Normal(0.0, 1.0))


@pytest.mark.parametrize("is_called", [False, True])
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (other, "was made for another model, of the latents c; those of 'line' are a, b"),
        (positive, r"made for another model: its site 'a' has the support .*, that of 'line' has Real\(\)"),
    ],
)
def test_a_guide_of_another_model_is_refused(model: Any, message: str, is_called: bool) -> None:
    guide = autoguide.AutoNormal(model)
    if is_called:
        guide(X, Y)
    with pytest.raises(ValueError, match=message):
        fit(TARGET, guide)


def test_a_guide_of_other_shapes_is_refused() -> None:
    guide = autoguide.AutoNormal(local)
    guide(X, Y)
    with pytest.raises(ValueError, match=r"its parameter 'locs.b_unconstrained' has shape \(4,\) in place of \(\)"):
        fit(TARGET, guide)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (autoguide.AutoNormal, TypeError, r"such as AutoNormal\(model\) after training, got the class itself"),
        (3, TypeError, "fitted takes a guide, a function or a module; got int"),
        ("AutoNormal", TypeError, "'AutoNormal' names a family, which has no values"),
        (autoguide.AutoDelta(line), RefusedFamilyError, "AutoDelta: a point mass has no density"),
    ],
)
def test_what_has_no_values_is_refused_at_once(given: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fitted(given)


def test_a_family_and_a_function_without_values_are_refused() -> None:
    with pytest.raises(ValueError, match="is a family, which has no values"):
        fit(TARGET, fitted(lambda model: autoguide.AutoNormal(model)))
    with pytest.raises(ValueError, match="Pyro's parameter store has no value of its parameter 'loc'; it has none"):
        fit(TARGET, fitted(function))
    result = ppl_vi.compare(line, {"point": autoguide.AutoDelta(line), "other": autoguide.AutoNormal(other)}, (X, Y))
    assert [record["status"] for record in result.records()] == ["skipped", "failed"]


class Slope(PyroModule):
    """A guide of one site whose location is computed from the data."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = PyroParam(torch.tensor(0.3), constraint=constraints.positive)

    def forward(self, x: Tensor, y: Tensor) -> None:
        pyro.sample("b", dist.Normal((x * y).sum() / (x * x).sum(), self.scale))


def slope_of_data() -> tuple[float, float]:
    """Where `Slope` puts `b`: the data alone say it."""
    return float((X * Y).sum() / (X * X).sum()), 0.3


@pytest.mark.parametrize("is_fitted", [True, False])
def test_a_module_in_a_list_is_given_the_model_s_arguments_as_in_pyro(is_fitted: bool, truth: Any) -> None:
    guide = autoguide.AutoGuideList(line)
    guide.append(autoguide.AutoNormal(poutine.block(line, expose=["a"])))
    guide.append(Slope())
    trained(guide)
    held = digits(state(guide))
    if is_fitted:
        card = measured(fitted(guide), truth)
        a, high = guide[0].quantiles([0.5, 0.8413447])["a"].reshape(2).double()
        loc = torch.stack([a, torch.tensor(slope_of_data()[0])])
        scale = torch.stack([high - a, guide[1]._guide.scale.detach().double()])
        assert value(card, "reverse_kl") == pytest.approx(exact(loc, torch.diag(scale)), rel=1e-5)
        assert digits(state(guide)) == held
    else:
        found = fit(TARGET, guide, num_steps=300)
        assert digits(state(guide)) == held
        assert float(found.draws(2000)["b"].mean()) == pytest.approx(slope_of_data()[0], abs=0.05)
        again = found.guide()
        torch.manual_seed(0)
        mean = torch.stack([again(X, Y)["a"].detach() for _ in range(2000)]).mean()
        assert float(mean) == pytest.approx(float(found.draws(2000)["a"].mean()), abs=0.05)


def positive_line(x: Tensor, y: Tensor) -> None:
    """A Gaussian and a positive latent that share no datum, so that a posterior of independent numbers is exact."""
    pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.sample("s", dist.LogNormal(0.3, 0.5))
    pyro.sample("at", dist.Normal(x.mean(), 1.0), obs=y.mean())


def lognormal_part(x: Tensor, y: Tensor) -> None:
    pyro.sample("s", dist.LogNormal(pyro.param("s_loc", torch.tensor(0.1)), 0.4))


def test_a_function_in_a_list_may_draw_a_latent_that_is_no_real_number() -> None:
    """Its draws are no values of unconstrained space, unlike those of the autoguides beside it."""
    guide = autoguide.AutoGuideList(positive_line)
    guide.append(autoguide.AutoNormal(poutine.block(positive_line, expose=["a"])))
    guide.append(lognormal_part)
    guide(X, Y)
    (record,) = ppl_vi.compare(positive_line, {"mine": fitted(guide)}, (X, Y), num_draws=500).records()
    loc, high = guide[0].quantiles([0.5, 0.8413447])["a"].reshape(2).double()
    kl = torch.distributions.kl_divergence
    of_a = kl(dist.Normal(loc, high - loc), dist.Normal(0.0, 1.0))
    of_s = kl(dist.Normal(0.1, 0.4), dist.Normal(0.3, 0.5))
    assert record["reverse_kl"] == pytest.approx(float(of_a + of_s), rel=1e-4)


class Still(PyroModule):
    """It has no parameters."""

    def forward(self, x: Tensor, y: Tensor) -> None:
        pyro.sample("a", dist.Normal(0.2, 0.4))
        pyro.sample("b", dist.Normal(0.7, 0.3))


def still(x: Tensor, y: Tensor) -> None:
    Still()(x, y)


@pytest.mark.parametrize("guide", [Still(), still, fitted(Still()), fitted(still)])
def test_a_guide_without_parameters_is_measured_as_it_is(guide: Any, truth: Any) -> None:
    card = score(fit(TARGET, guide, num_replicas=3), truth, num_draws=100)
    expected = exact(torch.tensor([0.2, 0.7]), torch.diag(torch.tensor([0.4, 0.3])))
    assert card.fit.status.tolist() == [["as_given"]]
    assert value(card, "reverse_kl") == pytest.approx(expected, rel=1e-6)
    assert value(card, "family_gap") == pytest.approx(expected, rel=1e-6)


def test_fit_takes_a_function_for_a_guide_as_compare_does() -> None:
    found = fit(line, function, (X, Y), num_steps=300)
    assert found.heading() == "Fit of function to line"
    assert float(found.draws(4000)["b"].mean()) == pytest.approx(float(posterior(2).mean[1]), abs=0.05)
    with pytest.raises(ValueError, match="neither a guide nor a family"):
        fit(line, lambda x, y=None: x.no_such_thing, (X, Y))


def test_a_store_that_is_loaded_after_a_call_is_told_of_with_what_to_do(tmp_path: Path) -> None:
    guide = trained(autoguide.AutoNormal(line), 90)
    expected = exact(*of_independent(guide))
    pyro.get_param_store().save(tmp_path / "store.pt")
    pyro.clear_param_store()
    other = trained(autoguide.AutoNormal(line), 5)
    pyro.clear_param_store()
    pyro.get_param_store().load(tmp_path / "store.pt")
    with pytest.warns(UserWarning, match="give the file as well, as in ppl_vi.fitted"):
        fitted(other)
    (record,) = ppl_vi.compare(line, {"file": fitted(other, tmp_path / "store.pt")}, (X, Y)).records()
    assert record["reverse_kl"] == pytest.approx(expected, rel=1e-5)


class Registering(nn.Module):
    """A network that states its own parameters, as in Pyro's examples."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 2)

    def forward(self, x: Tensor, y: Tensor) -> None:
        pyro.module("guide", self)
        out = self.net(y)
        pyro.sample("a", dist.Normal(out[0], 0.4))
        pyro.sample("b", dist.Normal(out[1], 0.3))


def test_a_network_that_states_itself_gives_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    fit(TARGET, Registering(), num_steps=20)
    assert not list(recwarn)
