"""A user's own model: which arguments it may take, what is refused and in which words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDiagonalNormal
from pyro.nn import PyroModule, PyroParam, PyroSample
from scipy import stats
from torch import Tensor
from torch.distributions import constraints

from ppl_vi import Target, fit
from ppl_vi.guides.own import family_of
from ppl_vi.svi.program import Program
from ppl_vi.svi.start import build_guide
from ppl_vi.target.fingerprint import fingerprint
from ppl_vi.truth import black_box_truth, ground_truth

X = np.array([[1.0, 2.0], [0.5, -1.0], [3.0, 0.25]], dtype=np.float32)
Y = np.array([1.5, -2.0, 0.75])


def regression(data: dict[str, Any], prior: float, names: list[str], offset: None = None) -> None:
    """Takes a dict, a number, a list of names; branches on its data and leaves out what is missing."""
    assert names == ["slope", "other"]
    seen = ~torch.isnan(data["y"])
    slopes = pyro.sample("slopes", dist.Normal(torch.zeros(len(names)), prior).to_event(1))
    noise = pyro.sample("noise", dist.HalfNormal(1.0)) if float(data["y"][seen].max()) > 1 else 1.0
    with pyro.plate("data", int(seen.sum())):
        pyro.sample("y", dist.Normal(data["x"][seen] @ slopes, noise), obs=data["y"][seen])


MISSING = np.append(Y, np.nan)
DATA = {"x": np.vstack([X, X[:1]]), "y": MISSING}


def own() -> Target:
    return Target.of(regression, (DATA, 2.0, ["slope", "other"], None))


def test_a_model_may_take_anything_and_branch_on_its_data() -> None:
    target = own()
    assert (target.name, target.num_problems, target.dim) == ("regression", 1, 3)
    slopes, noise = np.array([0.4, -0.7]), 0.6
    expected = stats.norm.logpdf(slopes, 0, 2).sum() + stats.halfnorm.logpdf(noise)
    expected += stats.norm.logpdf(Y, X @ slopes, noise).sum()
    latents = {"slopes": torch.tensor(slopes)[None, None], "noise": torch.tensor([[noise]], dtype=torch.float64)}
    assert float(target.log_joint(latents)) == pytest.approx(expected, rel=1e-12)


def test_it_is_fitted_as_it_is_and_by_hand_written_guides_with_its_own_arguments() -> None:
    def guide(data: dict[str, Any], prior: float, names: list[str], offset: None) -> None:
        assert (data["x"].dtype, prior, names, offset) == (torch.float64, 2.0, ["slope", "other"], None)
        loc = pyro.param("loc", torch.zeros(2))
        pyro.sample("slopes", dist.Normal(loc, 0.3).to_event(1))
        pyro.sample("noise", dist.LogNormal(pyro.param("log_noise", torch.tensor(0.0)), 0.3))

    class Module(PyroModule):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.scale = PyroParam(torch.tensor(0.3), constraints.positive)

        def forward(self, data: dict[str, Any], *others: Any) -> None:
            pyro.sample("slopes", dist.Normal(torch.zeros(2), self.scale).to_event(1))
            pyro.sample("noise", dist.LogNormal(torch.zeros(()), self.scale))

    settings: dict[str, Any] = {"engine": "batched", "num_steps": 8, "num_particles": 8}
    for family in (AutoDiagonalNormal, lambda model: guide, lambda model: Module()):
        fitted = fit(own(), family, **settings)
        assert fitted.status[0, 0] != "diverged"
        assert fitted.draw(3, seed=0)["slopes"].shape == (1, 1, 3, 2)
        assert not torch.equal(fitted.theta, fitted.program.layout.flatten(fitted.initial))


def test_the_data_it_keeps_are_part_of_what_a_fit_is_known_by() -> None:
    other = {**DATA, "y": MISSING + 1e-9}
    marks = {fingerprint(target) for target in (own(), own(), Target.of(regression, (other, 2.0, ["slope", "other"])))}
    assert len(marks) == 2
    assert [tuple(tensor.shape) for tensor in own().data] == [(1,), (4, 2), (4,)]


def test_no_arguments_at_all_and_a_name() -> None:
    def coin() -> None:
        pyro.sample("p", dist.Beta(2.0, 3.0))

    assert Target.of(coin).name == "coin"
    assert Target.of(coin, name="penny", dtype=torch.float32).args[0].dtype == torch.float32


def test_a_module_with_pyro_samples_is_a_model() -> None:
    class Line(PyroModule):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.slope = PyroSample(dist.Normal(0.0, 2.0))

        def forward(self, x: Tensor, y: Tensor) -> None:
            slope = self.slope
            with pyro.plate("data", len(y)):
                pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)

        def straight(self, x: Tensor, y: Tensor) -> None:
            self(x, y)

    assert Target.of(Line().straight, (X[:, 0], Y)).name == "straight"
    target = Target.of(Line(), (X[:, 0], Y))
    found = float(target.log_joint({"slope": torch.full((1, 1), 0.5, dtype=torch.float64)}))
    expected = stats.norm.logpdf(0.5, 0, 2) + stats.norm.logpdf(Y, 0.5 * X[:, 0], 1).sum()
    assert found == pytest.approx(expected, rel=1e-7)  # its prior was made in single precision, before the target


def supports(y: Tensor) -> None:
    """One of each support that has a bijection."""
    interval = pyro.sample("interval", dist.Uniform(-1.0, 3.0))
    simplex = pyro.sample("simplex", dist.Dirichlet(torch.tensor([1.5, 2.0, 3.0])))
    ordered = pyro.sample(
        "ordered",
        dist.TransformedDistribution(
            dist.Normal(torch.zeros(3), 1.0).to_event(1), [dist.transforms.OrderedTransform()]
        ),
    )
    factor = pyro.sample("factor", dist.LKJCholesky(3, 2.0))
    with pyro.plate("outer", 2, dim=-2), pyro.plate("inner", 3, dim=-1):
        cell = pyro.sample("cell", dist.Gamma(2.0, 1.0))
    mean = interval + simplex[0] + ordered[..., 1] + factor[1, 0] + cell.sum()
    pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def test_every_support_with_a_bijection() -> None:
    target = Target.of(supports, (np.array(2.0),))
    shapes = {site.name: (tuple(site.shape), tuple(site.unconstrained_shape)) for site in target.latents}
    assert shapes == {
        "interval": ((), ()),
        "simplex": ((3,), (2,)),
        "ordered": ((3,), (3,)),
        "factor": ((3, 3), (3,)),
        "cell": ((2, 3), (2, 3)),
    }
    u = torch.randn(1, 4, target.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    latents, log_jacobian = target.constrain(u)
    torch.testing.assert_close(target.unconstrain(latents), u, rtol=1e-9, atol=1e-9)
    assert bool((target.log_joint(latents) + log_jacobian).isfinite().all())
    assert bool(torch.linalg.eigvalsh(target.laplace.precision[0]).min() > 0)


# ---- what is the matter


def nothing(y: Tensor) -> None:
    pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)


def raises(y: Tensor) -> None:
    pyro.sample("z", dist.Normal(0.0, 1.0))
    raise KeyError("weight")


def misshapen(y: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(y.expand(3) @ w, 1.0), obs=y)


def gives_nan(y: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(0.0, (z - 100).log()), obs=y)


def missing(y: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(z, 1.0), obs=y * float("nan"))


def improper(y: Tensor) -> None:
    z = pyro.sample("z", dist.ImproperUniform(constraints.positive, (), ()))
    pyro.sample("y", dist.Normal(0.0, z), obs=y)


def twice(y: Tensor) -> None:
    pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("z", dist.Normal(y, 1.0))


def sometimes(y: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    if z > 0:
        pyro.sample("more", dist.Normal(0.0, 1.0))
    else:
        pyro.sample("less", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def outside(y: Tensor) -> None:
    rate = pyro.sample("rate", dist.Gamma(1.0, 1.0))
    pyro.sample("y", dist.Exponential(rate), obs=-y)


def masked(y: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0).mask(False))
    pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def noisy(y: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(z + torch.randn(()), 1.0), obs=y)


def angle(y: Tensor) -> None:
    a = pyro.sample("a", dist.VonMises(0.0, 2.0).expand([2]).to_event(1))
    pyro.sample("y", dist.VonMises(a[0], 1.0), obs=y)


def direction(y: Tensor) -> None:
    z = pyro.sample("z", dist.ProjectedNormal(torch.ones(2).to(y)))
    pyro.sample("y", dist.Normal(z[0], 1.0), obs=y)


def partly_seen(y: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 2):
        whole = pyro.sample("y", dist.Normal(z, 1.0), obs=y.expand(2), obs_mask=torch.tensor([True, False]))
        pyro.sample("later", dist.Normal(whole, 1.0), obs=y.expand(2))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (angle, "site 'a' is an angle: a VonMises repeats itself along the line.*draw it within"),
        (direction, "site 'z': Pyro has no map from unconstrained space to the support .* of a ProjectedNormal: draw"),
        (partly_seen, "site 'y' has an obs_mask, and other sites depend on.*draw what is missing at a site of its own"),
        (masked, "site 'z' has an improper prior"),
        (noisy, "random numbers that belong to no sample site"),
        (nothing, "no latent sample site"),
        (raises, "the model raised KeyError at or after site 'z': 'weight'"),
        (lambda: None, "the model raised TypeError before its first sample site.*takes 0 positional arguments"),
        (
            misshapen,
            "the model raised RuntimeError at or after site 'w'.*size.*: do the data",
        ),
        (gives_nan, "site 'y' has log density nan at a draw from the prior: look at the parameters of its Normal"),
        (missing, "site 'y': the data hold nan: leave such points out"),
        (improper, "site 'z'.*improper"),
        (
            twice,
            "the model raised RuntimeError.*Multiple sample sites named 'z': give each site and plate a name",
        ),
        (sometimes, "site '(more|less)' is drawn in some runs only"),
        (outside, "site 'y': data outside of the support .* of its Exponential"),
    ],
)
def test_a_model_that_cannot_be_measured_is_refused_in_one_line(model: Any, message: str) -> None:
    name = getattr(model, "__name__", "")
    with pytest.raises(ValueError, match=f"^{name}: .*{message}") as error:
        Target.of(model, (np.array(1.5),))
    assert "\n" not in str(error.value)


def test_data_at_an_end_that_moves_with_a_latent_are_allowed() -> None:
    """y ~ Uniform(0, top): a top below y has density 0, and fits begin above it."""

    def model(y: Tensor) -> None:
        top = pyro.sample("top", dist.Exponential(y.new_tensor(1.0)))
        pyro.sample("y", dist.Uniform(0.0, top), obs=y)

    target = Target.of(model, (np.array(2.5),))
    start = target.constrain(target.start.loc)[0]["top"]
    assert float(start) > 2.5


def test_data_that_no_prior_draw_allows_are_told() -> None:
    def model(y: Tensor) -> None:
        top = pyro.sample("top", dist.Beta(y.new_tensor(2.0), 2.0))
        pyro.sample("y", dist.Uniform(0.0, top), obs=y)

    with pytest.raises(ValueError, match="model: problem 0 has log density -inf at each of 200 draws from the prior"):
        _ = Target.of(model, (np.array(2.5),)).start


@pytest.mark.parametrize(
    ("model", "args", "message"),
    [
        (3, (), "model must be a Pyro model, something callable; got int"),
        (nothing, 3.0, "args must be a tuple of the model's positional arguments, got float"),
        (nothing, [1.0], "args must be a tuple of the model's positional arguments, got list"),
    ],
)
def test_what_is_no_model_or_no_tuple(model: Any, args: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        Target.of(model, args)


def test_a_density_that_is_nan_at_rare_points_is_told_with_the_site() -> None:
    def model(y: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal((z + 5).sqrt(), 1.0), obs=y)

    with pytest.raises(
        ValueError, match=r"^model: the log density is nan .*, at site 'y' where z = -.*: does the model"
    ):
        black_box_truth(Target.of(model, (np.array(1.5),)))


def _guide(draw: Any) -> Any:
    def guide(y: Tensor) -> None:
        draw(pyro.param("m", torch.tensor(0.5)))

    return guide


@pytest.mark.parametrize(
    ("guide", "message"),
    [
        (
            _guide(lambda m: pyro.sample("z", dist.Normal(m, 1.0).expand([2]).to_event(1))),
            r"draws shape \(2,\), the.*\(\)$",
        ),
        (_guide(lambda m: pyro.sample("z", dist.Poisson(m.exp()))), "draws from a Poisson, which is discrete"),
        (_guide(lambda m: pyro.sample("z", dist.Normal(0.0, -m))), "nan before the first step.*of its Normal"),
    ],
)
def test_a_guide_that_cannot_be_fitted_is_refused_by_the_site(guide: Any, message: str) -> None:
    def model(y: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    target = Target.of(model, (np.array(1.5),))
    with pytest.raises(ValueError, match=message):
        fit(target, family_of(target, guide), num_steps=1)


def test_a_guide_that_draws_beside_the_latents_has_no_density_over_them() -> None:
    def model(y: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    def guide(y: Tensor) -> None:
        other = pyro.sample("other", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        pyro.sample("z", dist.Normal(other + pyro.param("m", torch.tensor(0.5)), 1.0))

    target = Target.of(model, (np.array(1.5),))
    program = Program(target, build_guide(family_of(target, guide), target))
    assert "draws site 'other' beside the latents" in str(program.unsupported_density())


def test_a_module_with_priors_made_in_single_precision() -> None:
    """PyroSample keeps them as they were made, before anything here was asked; against the conjugate closed form."""

    class Regression(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = PyroSample(dist.Normal(0.0, 2.0).expand([2]).to_event(1))

        def forward(self, y: Tensor) -> None:
            mean = self.weight.sum()
            with pyro.plate("data", 2):
                pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    model, y = Regression(), np.array([1.5, 0.3])
    truth = ground_truth(Target.of(model, (y,)))
    expected = stats.multivariate_normal(np.zeros(2), np.eye(2) + 8.0).logpdf(y)
    assert float(truth.log_evidence[0]) == pytest.approx(expected, abs=1e-9)
    assert model.weight.dtype == torch.float32  # the user's own is left as it was
