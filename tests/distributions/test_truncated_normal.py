"""The truncated normal against mpmath, against other routes, and as a citizen of torch and Pyro.

Errors are relative to max(1, |value|) for logarithms and to max(sd, |value|) otherwise. mpmath sees the same doubles,
so that no slack is needed for the rounding of inputs.
"""

import math
from collections.abc import Callable, Iterator

import mpmath
import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mpf
from pyro.infer.autoguide.initialization import init_to_sample
from torch import Tensor
from torch.distributions import biject_to, kl_divergence
from torch.func import grad, hessian, jacrev, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from benchmarks.truncated_normal import (
    DIGITS,
    REGIMES,
    cases,
    exact_cdf,
    exact_entropy,
    exact_gradient,
    exact_icdf,
    exact_log_normalizer,
    exact_log_prob,
    exact_mean,
    exact_variance,
    parameters,
)
from ppl_vi.distributions import TruncatedNormal

# torch's own forward mode scripts its rules when it is first used, and is warned by itself.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")

INF = math.inf
CASES = [pytest.param(numbers, id=f"{regime}: {numbers}") for regime in REGIMES for numbers in cases(REGIMES[regime])]
GRADIENT_TOLERANCE = 1e-8

Numbers = tuple[float, ...]


@pytest.fixture(autouse=True)
def _digits() -> Iterator[None]:
    with mpmath.workdps(DIGITS):
        yield


def law(numbers: Numbers, dtype: torch.dtype = torch.float64, **kwargs: bool) -> TruncatedNormal:
    return TruncatedNormal(*(torch.tensor(x, dtype=dtype) for x in numbers), **kwargs)


def double(x: float) -> Tensor:
    return torch.tensor(x, dtype=torch.float64)


def error(value: Tensor, truth: mpf, unit: mpf | float) -> float:
    """Relative to `truth`, but to no less than `unit`; infinite for NaN."""
    assert value.isfinite(), f"{value} where {mpmath.nstr(truth, 10)} is right"
    return float(abs(mpf(value.item()) - truth) / max(abs(truth), mpf(unit)))


def check_values(
    numbers: Numbers, probabilities: list[float], dtype: torch.dtype, log_error: float, rel: float
) -> None:
    target = law(numbers, dtype)
    exact = [mpf(p.item()) for p in target.parameters]
    sd = mpmath.sqrt(exact_variance(*exact))
    assert error(target.log_normalizer, exact_log_normalizer(*exact), 1) < log_error
    assert error(target.entropy(), exact_entropy(*exact), 1) < rel
    assert error(target.mean, exact_mean(*exact), sd) < rel
    assert error(target.variance, exact_variance(*exact), 0) < rel
    for p in probabilities:
        probability = torch.tensor(p, dtype=dtype)
        value = target.icdf(probability)
        z = mpf(value.item())
        assert error(value, exact_icdf(mpf(probability.item()), *exact, start=z), sd) < rel
        assert error(target.log_prob(value), exact_log_prob(z, *exact), 1) < log_error
        assert error(target.cdf(value), exact_cdf(z, *exact), 1) < rel


def gradient_errors(numbers: Numbers, probability: float) -> Iterator[tuple[str, float]]:
    """Errors of all derivatives, relative to them or, where they are differences of larger numbers, to those."""
    inputs = [double(x).requires_grad_() for x in numbers]
    exact = [mpf(x) for x in numbers]
    target = TruncatedNormal(*inputs)
    sd = mpmath.sqrt(exact_variance(*exact)) / exact[1]
    far = 1 + abs(exact_mean(*exact) - exact[0]) / exact[1]  # zeta^2 - E zeta^2 has the size far * sd
    score = sd / exact[1]
    tiny = mpf(10) ** -50  # mpmath's differences have no digits below

    def compare(name: str, output: Tensor, truths: list[mpf], units: list[mpf]) -> Iterator[tuple[str, float]]:
        for slope, truth, unit, of in zip(torch.autograd.grad(output, inputs), truths, units, "lsab", strict=True):
            yield f"d {name} / d {of}", error(slope, truth, unit + tiny)

    summary: tuple[tuple[str, Tensor, Callable[..., mpf], list[mpf]], ...] = (
        ("log_normalizer", target.log_normalizer, exact_log_normalizer, [score, far**2 / exact[1], tiny, tiny]),
        ("mean", target.mean, exact_mean, [sd**2, far * sd**2, tiny, tiny]),
        ("variance", target.variance, exact_variance, [u * sd**2 * exact[1] for u in (sd, far * sd, 1, 1)]),
        ("entropy", target.entropy(), exact_entropy, [score, far * score, tiny, tiny]),
    )
    for name, output, function, units in summary:
        yield from compare(name, output, exact_gradient(function, *exact), units)

    value = target.icdf(double(probability))
    z = exact_icdf(mpf(probability), *exact, start=mpf(value.item()))
    density = mpmath.exp(exact_log_prob(z, *exact))
    implicit = [-slope / density for slope in exact_gradient(exact_cdf, z, *exact)[1:]]
    yield from compare("icdf", value, implicit, [sd**2, far * sd**2, tiny, tiny])

    value = value.detach()
    at = (mpf(value.item()), *exact)
    yield from compare(
        "log_prob", target.log_prob(value), exact_gradient(exact_log_prob, *at)[1:], [score, far * score, tiny, tiny]
    )
    yield from compare("cdf", target.cdf(value), exact_gradient(exact_cdf, *at)[1:], [score, far * score, tiny, tiny])


@pytest.mark.parametrize("numbers", CASES)
def test_values_in_double_precision(numbers: Numbers) -> None:
    check_values(numbers, [1e-9, 0.3, 1 - 1e-9], torch.float64, 1e-12, 1e-10)


@pytest.mark.parametrize("numbers", CASES[::2])
def test_values_in_single_precision(numbers: Numbers) -> None:
    single = law(numbers, torch.float32, validate_args=False)
    if single.low == single.high:
        pytest.skip("the bounds are one and the same number in single precision")
    check_values(numbers, [2**-25, 0.3, 1 - 2**-24], torch.float32, 1e-5, 1e-5)


@pytest.mark.parametrize("numbers", CASES)
def test_gradients(numbers: Numbers) -> None:
    errors = dict(gradient_errors(numbers, 0.7))
    assert max(errors.values()) < GRADIENT_TOLERANCE, errors


@pytest.mark.parametrize("numbers", CASES[::3])
def test_second_derivatives(numbers: Numbers) -> None:
    loc, scale, low, high = (double(x) for x in numbers)
    value = law(numbers).icdf(double(0.3))
    exact = [mpf(x) for x in numbers]

    def log_prob(loc: Tensor, scale: Tensor) -> Tensor:
        return TruncatedNormal(loc, scale, low, high, validate_args=False).log_prob(value)

    def truth(loc: mpf, scale: mpf) -> mpf:
        return exact_log_prob(mpf(value.item()), loc, scale, exact[2], exact[3])

    with mpmath.workdps(180):
        h = exact[1] * min(1, (exact[3] - exact[2]) / exact[1]) * mpf(10) ** -35

        def second(i: int, j: int) -> mpf:
            def at(a: int, b: int) -> mpf:
                return truth(exact[0] + h * (a * (i == 0) + b * (j == 0)), exact[1] + h * (a * (i == 1) + b * (j == 1)))

            return (at(1, 1) - at(1, -1) - at(-1, 1) + at(-1, -1)) / (4 * h * h)

        for twice in (hessian(log_prob, argnums=(0, 1)), jacrev(jacrev(log_prob, argnums=(0, 1)), argnums=(0, 1))):
            matrix = twice(loc, scale)
            for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
                assert error(matrix[i][j], second(i, j), 0) < 1e-9


@settings(deadline=None, derandomize=True, max_examples=25, database=None)
@given(
    st.floats(-4, 4).flatmap(lambda e: st.sampled_from([-(10**e), 10**e])),
    st.floats(-8, 8).map(lambda e: 10**e),
    st.booleans(),
    st.floats(-3, 3),
    st.floats(0.1, 10),
    st.floats(1e-6, 1 - 1e-6),
)
def test_random_cases(alpha: float, width: float, mirrored: bool, loc: float, scale: float, p: float) -> None:
    numbers = parameters(alpha, width, mirrored, loc, scale)
    check_values(numbers, [p], torch.float64, 1e-12, 1e-10)
    errors = dict(gradient_errors(numbers, p))
    assert max(errors.values()) < GRADIENT_TOLERANCE, errors


def easy() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A batch that touches both frames, both orientations, and half lines."""
    loc = torch.tensor([0.0, 1.0, -3.0, 2.0, 0.5], dtype=torch.float64)
    low = torch.tensor([-1.0, 1.3, -INF, 0.0, -6.0], dtype=torch.float64)
    high = torch.tensor([1.2, 5.0, -4.0, INF, 8.0], dtype=torch.float64)
    return loc, torch.tensor([1.5, 0.5, 1.0, 2.0, 1.0], dtype=torch.float64), low, high


@pytest.mark.parametrize("method", ["log_prob", "cdf", "icdf", "mean", "variance", "entropy", "log_normalizer"])
def test_gradcheck_to_second_order_and_forward_mode(method: str) -> None:
    loc, scale, low, high = (x.requires_grad_() for x in easy())
    # Finite differences can't step from an infinite bound.
    bounded = [torch.where(x.isinf(), x.sign() * 9, x).detach().requires_grad_() for x in (low, high)]
    arguments = [loc, scale, *bounded]
    points = torch.tensor([0.2, 0.4, 0.6, 0.7, 0.9], dtype=torch.float64)
    if method in ("log_prob", "cdf"):
        points = TruncatedNormal(*arguments).icdf(points).detach()
    takes_points = method in ("log_prob", "cdf", "icdf")

    def function(*inputs: Tensor) -> Tensor:
        target = TruncatedNormal(*inputs[-4:], validate_args=False)
        attribute = getattr(target, method)
        return attribute(inputs[0]) if takes_points else attribute() if callable(attribute) else attribute

    inputs = [points.requires_grad_(), *arguments] if takes_points else arguments
    assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_without_bounds_it_is_the_normal() -> None:
    loc, scale, *_ = easy()
    free, normal = TruncatedNormal(loc, scale), dist.Normal(loc, scale)
    value = torch.linspace(-30, 30, 5, dtype=torch.float64)
    for method in ("log_prob", "cdf"):
        torch.testing.assert_close(getattr(free, method)(value), getattr(normal, method)(value), rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(free.icdf(double(0.8)), normal.icdf(double(0.8)))
    torch.testing.assert_close(free.entropy(), normal.entropy())
    assert torch.equal(free.mean, loc)
    assert torch.equal(free.variance, scale**2)
    assert torch.equal(free.log_normalizer, torch.zeros_like(loc))


def test_reflection_exchanges_the_bounds() -> None:
    loc, scale, low, high = easy()
    one, other = TruncatedNormal(loc, scale, low, high), TruncatedNormal(-loc, scale, -high, -low)
    p = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64).unsqueeze(-1)  # 1 - p is exact
    torch.testing.assert_close(one.icdf(p), -other.icdf(1 - p), rtol=1e-15, atol=1e-15)
    torch.testing.assert_close(one.cdf(one.icdf(p)), p.expand(3, 5), rtol=1e-13, atol=0)
    assert torch.equal(one.variance, other.variance)


def test_ends_of_the_support() -> None:
    loc, scale, low, high = easy()
    target = TruncatedNormal(loc, scale, low, high)
    zero, one = torch.zeros_like(loc), torch.ones_like(loc)
    assert torch.equal(target.icdf(zero), low)
    assert torch.equal(target.icdf(one), high)
    assert torch.equal(target.cdf(low), zero)
    assert torch.equal(target.cdf(high), one)
    assert torch.equal(TruncatedNormal(loc, scale).cdf(torch.full_like(loc, INF)), one)
    inputs = [x.clone().requires_grad_() for x in easy()]
    slopes = torch.autograd.grad(TruncatedNormal(*inputs).icdf(one).sum(), inputs)
    assert torch.equal(slopes[3], one - high.isinf().to(loc.dtype))  # the quantile at 1 is the bound itself,
    torch.testing.assert_close(slopes[0], high.isinf().to(loc.dtype))  # or goes with the normal where there is none


def test_outside_the_support() -> None:
    loc, scale, low, high = easy()
    inputs = [x.requires_grad_() for x in (loc, scale)]
    loose = TruncatedNormal(*inputs, low, high, validate_args=False)
    above = torch.where(high.isinf(), 3.0, high + 1)
    log_prob = loose.log_prob(above)
    assert torch.equal(log_prob == -INF, ~high.isinf())
    assert torch.equal(loose.cdf(above) == 1, ~high.isinf())
    slopes = torch.autograd.grad(torch.where(log_prob.isinf(), 0.0, log_prob).sum(), inputs)
    assert all(slope.isfinite().all() for slope in slopes)
    assert loose.log_prob(torch.full_like(loc, math.nan)).isnan().all()
    with pytest.raises(ValueError, match="support"):
        TruncatedNormal(loc, scale, low, high).log_prob(above)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((0.0, 0.0, -1.0, 1.0), "scale"),
        ((0.0, -1.0, -1.0, 1.0), "scale"),
        ((0.0, INF, -1.0, 1.0), "finite scale"),
        ((INF, 1.0, -1.0, 1.0), "finite loc"),
        ((math.nan, 1.0, -1.0, 1.0), "loc"),
        ((0.0, 1.0, 1.0, 1.0), "low < high"),
        ((0.0, 1.0, 2.0, 1.0), "low < high"),
        ((0.0, 1.0, math.nan, 1.0), "low < high"),
    ],
)
def test_parameters_are_checked(numbers: Numbers, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        law(numbers, validate_args=True)
    law(numbers, validate_args=False)


def test_probabilities_are_checked() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        law((0.0, 1.0, 0.0, 1.0), validate_args=True).icdf(double(1.5))


def test_shapes() -> None:
    target = TruncatedNormal(torch.zeros(3, 1), 1.0, low=torch.tensor([-1.0, -INF]), high=2.0)
    assert target.batch_shape == (3, 2)
    assert target.event_shape == ()
    assert target.rsample((4,)).shape == (4, 3, 2)
    assert target.log_prob(torch.zeros(5, 1, 1)).shape == (5, 3, 2)
    assert target.icdf(torch.tensor(0.5)).shape == (3, 2)
    expanded = target.expand((7, 3, 2))
    assert isinstance(expanded, TruncatedNormal)
    assert expanded.mean.shape == expanded.sample().shape == (7, 3, 2)
    assert torch.equal(expanded.mean[4], target.mean)
    assert target.to_event(1).log_prob(torch.zeros(3, 2)).shape == (3,)
    assert target.expand_by((2,)).batch_shape == (2, 3, 2)
    assert target.loc.dtype == target.sample().dtype == torch.float32


def test_a_batch_of_many_blocks_equals_its_parts() -> None:
    loc = torch.linspace(-3, 5, 20_010, dtype=torch.float64).reshape(3, 6670).requires_grad_()
    target = TruncatedNormal(loc, 1.0, 0.0, torch.tensor([[1.0], [2.5], [INF]], dtype=torch.float64))
    quantile = target.icdf(double(0.3))
    slope = torch.autograd.grad(target.log_prob(quantile.detach()).sum(), loc)[0]
    for i, high in enumerate((1.0, 2.5, INF)):
        row = TruncatedNormal(loc[i, ::10], 1.0, 0.0, high)
        torch.testing.assert_close(row.icdf(double(0.3)), quantile[i, ::10], rtol=1e-14, atol=1e-15)
        part = torch.autograd.grad(row.log_prob(quantile[i, ::10].detach()).sum(), loc)[0][i, ::10]
        torch.testing.assert_close(part, slope[i, ::10], rtol=1e-13, atol=1e-14)


def test_support_and_its_bijection() -> None:
    target = TruncatedNormal(*easy())
    x = torch.tensor([-0.7, 0.3, 1.1, -2.0, 0.4], dtype=torch.float64)
    to_support = biject_to(target.support)
    y = to_support(x)
    assert target.support.check(y).all()
    torch.testing.assert_close(to_support.inv(y), x)
    slope = torch.diagonal(torch.autograd.functional.jacobian(to_support, x))
    torch.testing.assert_close(to_support.log_abs_det_jacobian(x, y), slope.abs().log())
    assert torch.equal(slope.sign(), to_support.sign)
    assert to_support(torch.full((5,), 1e3, dtype=torch.float64)).le(target.high).all()
    free = biject_to(TruncatedNormal(torch.zeros(5), 1.0).support)
    assert torch.equal(free(x.float()), x.float())


def kolmogorov_smirnov(probabilities: Tensor) -> float:
    """sqrt(n) times the largest distance of the draws' cdf values from uniform; above 2.2 once in 10,000 times."""
    n = len(probabilities)
    ranks = torch.arange(n + 1, dtype=torch.float64) / n
    ordered = probabilities.double().sort().values
    return math.sqrt(n) * max((ordered - ranks[:-1]).max().item(), (ranks[1:] - ordered).max().item())


@pytest.mark.parametrize(
    ("alpha", "width"), [(-1.0, 2.5), (0.4, INF), (-0.3, 0.5), (50.0, 1.0), (1e4, INF), (3.0, 1e-6)]
)
@pytest.mark.parametrize("mirrored", [False, True])
def test_draws_follow_the_law(alpha: float, width: float, mirrored: bool) -> None:
    target = law(parameters(alpha, width, mirrored, 0.7, 0.4))
    torch.manual_seed(5)
    draws = target.sample((20_000,))
    assert target.support.check(draws).all()
    assert kolmogorov_smirnov(target.cdf(draws)) < 2.2
    # Five standard errors; the variance of a square deviation is at most 9 sd^4 for these laws, an exponential's at
    # most.
    assert abs(draws.mean() - target.mean) < 5 * (target.variance / 20_000).sqrt()
    assert abs(draws.var() - target.variance) < 5 * (9 * target.variance**2 / 20_000).sqrt()


def test_the_test_of_draws_sees_a_wrong_law() -> None:
    torch.manual_seed(5)
    draws = law((0.0, 1.0, 0.0, 3.0)).sample((20_000,))
    assert kolmogorov_smirnov(law((0.05, 1.0, 0.0, 3.0)).cdf(draws)) > 2.2


def test_one_call_of_rand_and_a_finite_draw_at_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def zeros(*shape: object, **kwargs: object) -> Tensor:
        calls.append((shape, kwargs))
        return torch.zeros(*shape, **kwargs)  # type: ignore[call-overload]

    target = TruncatedNormal(torch.zeros(3), 1.0, low=torch.tensor([-INF, 0.0, 1e4]))
    monkeypatch.setattr(torch, "rand", zeros)
    draws = target.rsample((2,))
    assert calls == [(((2, 3),), {"dtype": torch.float32, "device": target.loc.device})]
    assert draws.isfinite().all()
    torch.testing.assert_close(draws[0, 0], torch.special.ndtri(double(2**-25)).float())


def test_reparameterised_gradient_of_an_expectation() -> None:
    inputs = [double(x).requires_grad_() for x in (0.3, 1.2, -0.5, 2.0)]
    torch.manual_seed(2)
    draws = TruncatedNormal(*inputs).rsample((20_000,))
    slopes = [
        torch.autograd.grad(draws, x, torch.eye(1).new_ones(20_000).double(), retain_graph=True)[0] for x in inputs
    ]
    truths = torch.autograd.grad(TruncatedNormal(*inputs).mean, inputs)
    for slope, truth in zip(slopes, truths, strict=True):  # each draw's derivative lies between -2 and 2
        assert abs(slope / 20_000 - truth) < 5 * 2 / math.sqrt(20_000)


def exact_divergence(p: Numbers, q: Numbers) -> float:
    """KL(p || q) by quadrature over the part of p's interval within 30 standard deviations of its mean."""
    low, high = (mpf(x) for x in p[2:])
    with mpmath.workdps(30):
        sd = mpmath.sqrt(exact_variance(*map(mpf, p)))
        middle = exact_mean(*map(mpf, p))
        ends = mpmath.linspace(max(low, middle - 30 * sd), min(high, middle + 30 * sd), 20)

        def integrand(z: mpf) -> mpf:
            log_p = exact_log_prob(z, *map(mpf, p))
            return mpmath.exp(log_p) * (log_p - exact_log_prob(z, *map(mpf, q)))

        return float(mpmath.quad(integrand, ends, maxdegree=4))


@pytest.mark.parametrize(
    ("p", "q"),
    [
        ((0.3, 1.2, -1.0, 2.0), (-0.4, 0.7, -1.0, 2.0)),  # one support
        ((-3.0, 1.0, 0.0, INF), (1.0, 2.0, 0.0, INF)),
        ((-50.0, 1.0, 0.0, INF), (-40.0, 1.5, 0.0, INF)),
        ((0.3, 1.2, -1.0, 2.0), (1.0, 0.9, -3.0, INF)),  # one inside the other
        ((3.0, 0.5, -INF, 1.0), (0.0, 1.0, -INF, 1.5)),
        ((2.0, 1.0, -0.1, 0.2), (0.0, 3.0, -INF, INF)),
    ],
)
def test_kl_divergence(p: Numbers, q: Numbers) -> None:
    truth = exact_divergence(p, q)
    assert kl_divergence(law(p), law(q)).item() == pytest.approx(truth, rel=1e-11, abs=1e-12)
    if q[2:] == (-INF, INF):
        normal = dist.Normal(double(q[0]), double(q[1]))
        assert kl_divergence(law(p), normal).item() == pytest.approx(truth, rel=1e-11, abs=1e-12)


def test_kl_divergence_where_the_supports_differ() -> None:
    loc = torch.zeros(3, requires_grad=True)
    p = TruncatedNormal(loc, 1.0, torch.tensor([0.0, -1.0, 0.0]), torch.tensor([1.0, 1.0, INF]))
    q = TruncatedNormal(0.5, 1.0, 0.0, torch.tensor([1.0, 1.0, 4.0]))
    divergence = kl_divergence(p, q)
    assert divergence.isinf().tolist() == [False, True, True]
    assert torch.autograd.grad(divergence[0], loc)[0].isfinite().all()
    torch.testing.assert_close(kl_divergence(p, p), torch.zeros(3), rtol=0, atol=1e-6)


def test_as_a_site_in_pyro() -> None:
    data = torch.tensor([0.2, 1.4])

    def model() -> None:
        z = pyro.sample("z", TruncatedNormal(1.0, 2.0, low=0.0))
        with pyro.plate("data", 2):
            pyro.sample("x", TruncatedNormal(z, 1.0, -1.0, 3.0), obs=data)

    with pyro.get_param_store().scope():
        pyro.set_rng_seed(0)
        guide = pyro.infer.autoguide.AutoNormal(model, init_loc_fn=init_to_sample)
        svi = pyro.infer.SVI(
            model,
            guide,
            pyro.optim.Adam({"lr": 0.05}),
            pyro.infer.Trace_ELBO(num_particles=8, vectorize_particles=False),
        )
        losses = [svi.step() for _ in range(60)]
        assert guide()["z"] > 0
    assert sum(losses[-10:]) < sum(losses[:10])
    trace = pyro.poutine.trace(model).get_trace()
    assert trace.log_prob_sum().isfinite()


def test_vmap_and_tracing() -> None:
    loc, scale, low, high = easy()
    values = TruncatedNormal(loc, scale, low, high).icdf(double(0.3))

    def log_prob(loc: Tensor, scale: Tensor, low: Tensor, high: Tensor, value: Tensor) -> Tensor:
        return TruncatedNormal(loc, scale, low, high, validate_args=False).log_prob(value)

    batched = vmap(grad(log_prob, argnums=(0, 1, 2, 3)))
    inputs = [x.clone().requires_grad_() for x in easy()]
    expected = torch.autograd.grad(TruncatedNormal(*inputs).log_prob(values).sum(), inputs)
    for traced in (batched, make_fx(batched)(loc, scale, low, high, values)):
        for slope, truth in zip(traced(loc, scale, low, high, values), expected, strict=True):
            torch.testing.assert_close(slope, truth, rtol=1e-13, atol=1e-15)

    # A traced graph serves for other numbers, too: nothing of the first ones is frozen into it.
    graph = make_fx(vmap(hessian(log_prob, argnums=(0, 1))))(loc, scale, low, high, values)
    moved = (loc - 7, scale, low, high, values)
    for row, truth in zip(graph(*moved), vmap(hessian(log_prob, argnums=(0, 1)))(*moved), strict=True):
        torch.testing.assert_close(row, truth)


def test_draws_under_vmap_and_tracing() -> None:
    loc, scale, low, high = easy()

    def draw(loc: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return TruncatedNormal(loc, scale, low, high, validate_args=False).rsample((3,))

    slopes = vmap(jacrev(draw, argnums=(0, 1, 2, 3)), randomness="different")
    graph = make_fx(slopes)(loc, scale, low, high)
    assert [str(node.target) for node in graph.graph.nodes if "rand" in str(node.target)] == ["aten.rand.default"]
    torch.manual_seed(3)
    traced = graph(loc, scale, low, high)
    torch.manual_seed(3)
    for one, other in zip(traced, slopes(loc, scale, low, high), strict=True):
        torch.testing.assert_close(one, other)

    same = [x[:1].expand(4) for x in (loc, scale, low, high)]
    draws = vmap(draw, randomness="different")(*same)
    assert len(draws.flatten().unique()) == 12


def test_global_state_is_left_alone() -> None:
    before = torch.get_default_dtype(), torch.is_grad_enabled()
    law((0.0, 1.0, 0.0, 1.0)).rsample((2,))
    assert (torch.get_default_dtype(), torch.is_grad_enabled()) == before
