"""Newton's method against SciPy and closed forms, and the promise of `predicted_gain` by hand."""

import math

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

from ppl_vi.numerics.newton import minimize, predicted_gain


def double(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def rosenbrock(x: Tensor) -> Tensor:
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


@pytest.mark.parametrize("start", [(-1.2, 1.0), (3.0, -2.0), (0.0, 0.0), (-1.2, 1.0, -0.5, 2.0)])
def test_rosenbrocks_valley_ends_where_scipy_says(start: tuple[float, ...]) -> None:
    found = minimize(rosenbrock, double([start]))
    rosen, slope, options = scipy.optimize.rosen, scipy.optimize.rosen_der, {"gtol": 1e-10}
    expected = scipy.optimize.minimize(rosen, start, jac=slope, method="BFGS", options=options)
    assert bool(found.converged.all())
    # a gain of 1e-12 leaves |x - x*| <= sqrt(2e-12 / smallest eigenvalue), which is 0.2 or more here
    np.testing.assert_allclose(found.x[0], expected.x, atol=1e-5)
    np.testing.assert_allclose(found.value[0], expected.fun, atol=1e-11)


def test_an_ill_conditioned_quadratic_is_solved_exactly() -> None:
    generator = torch.Generator().manual_seed(5)
    axes = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=generator))[0]
    hessian = axes @ torch.diag(torch.logspace(-3, 5, 6, dtype=torch.float64)) @ axes.T
    solution = torch.arange(1.0, 7.0, dtype=torch.float64)
    found = minimize(lambda x: 0.5 * (x - solution) @ hessian @ (x - solution) - 2.5, torch.zeros(1, 6).double())
    assert bool(found.converged.all())
    assert float(found.value) == pytest.approx(-2.5, abs=1e-11)
    torch.testing.assert_close(found.hessian[0], hessian, rtol=1e-9, atol=1e-6)
    assert float((found.x[0] - solution).abs().max()) <= math.sqrt(2e-12 / 1e-3)  # gain 1e-12, smallest eigenvalue 1e-3


def test_scales_that_are_eighteen_powers_of_ten_apart_are_solved() -> None:
    """Curvatures 1e-6 and 1e12 with a correlation of 1/2: beyond what eigenvalues of the Hessian can hold."""
    widths = double([1e3, 1e-6])
    hessian = double([[1.0, 0.5], [0.5, 1.0]]) / (widths[:, None] * widths)
    optimum = double([5e5, 2e-6])
    found = minimize(lambda x: (x - optimum) @ hessian @ (x - optimum) / 2, torch.zeros(1, 2).double())
    assert bool(found.converged.all())
    # a gain of 1e-12 leaves |x - x*| <= sqrt(2e-12 / smallest eigenvalue) widths, the eigenvalue being 1/2
    torch.testing.assert_close(found.x[0] / widths, optimum / widths, rtol=0, atol=2e-6)


def test_a_flat_direction_stays_where_it_was() -> None:
    found = minimize(lambda x: (x[0] - 3) ** 4 + (x[0] - 3) ** 2, double([[0.5, 7.25]]))
    assert bool(found.converged.all())
    assert float(found.x[0, 0]) == pytest.approx(3, abs=2e-6)
    assert float(found.x[0, 1]) == 7.25


def test_a_saddle_is_left_and_a_wall_of_nan_survived() -> None:
    saddle = minimize(lambda x: x[0] ** 4 / 4 - x[0] ** 2 / 2 + (x[1] - 2) ** 2, double([[1e-3, 0.0], [-1e-3, 5.0]]))
    torch.testing.assert_close(saddle.x, double([[1.0, 2.0], [-1.0, 2.0]]), rtol=0, atol=2e-6)
    barrier = minimize(lambda x: (x - 3 * x.log()).sum(), double([[40.0], [1e-3]]))  # nan at x <= 0
    assert bool(barrier.converged.all())
    torch.testing.assert_close(barrier.x, double([[3.0], [3.0]]), rtol=0, atol=6e-6)


def test_many_problems_at_once_are_each_problem_alone() -> None:
    def objective(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return (x * a).exp().sum() - (b * x).sum() + rosenbrock(x) / 50 + x.square().sum()

    generator = torch.Generator().manual_seed(8)
    start, a, b = torch.randn(3, 7, 2, dtype=torch.float64, generator=generator)
    together = minimize(objective, start, args=(a, b))
    assert bool(together.converged.all())
    for n in range(7):
        alone = minimize(objective, start[n : n + 1], args=(a[n : n + 1], b[n : n + 1]))
        torch.testing.assert_close(together.x[n], alone.x[0], rtol=1e-12, atol=1e-12)
        routes = scipy.optimize.minimize(
            lambda x, n=n: float(objective(double(x), a[n], b[n])), start[n].numpy(), method="Nelder-Mead",
            options={"xatol": 1e-7, "fatol": 1e-13, "maxiter": 2000},
        )  # fmt: skip
        assert float(together.value[n]) == pytest.approx(routes.fun, abs=1e-11)


def test_too_few_steps_are_admitted() -> None:
    found = minimize(rosenbrock, double([[-1.2, 1.0], [1.0, 1.0]]), max_steps=3)
    assert found.converged.tolist() == [False, True]
    assert float(found.gain[0]) > 1e-3


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_start_without_a_value_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match=f"finite at the start; problem 1 gives {bad}"):
        minimize(lambda x, shift: (x**2).sum() + shift, double([[1.0], [1.0]]), args=(double([0.0, bad]),))


def rotated(*eigenvalues: float) -> tuple[Tensor, Tensor]:
    """A matrix with given eigenvalues on axes turned by 30 degrees, and the axes."""
    c, s = math.cos(math.pi / 6), math.sin(math.pi / 6)
    axes = double([[c, -s], [s, c]])
    return axes @ torch.diag(double(eigenvalues)) @ axes.T, axes


@pytest.mark.parametrize(
    ("eigenvalues", "slopes", "radius", "gain"),
    [
        ((2.0, 8.0), (1.0, -4.0), 1.0, 1 / 4 + 16 / 16),  # both minima inside
        ((2.0, 0.5), (1.0, 3.0), 1.0, 1 / 4 + 3 - 0.25),  # the second beyond the edge
        ((2.0, 0.5), (1.0, 3.0), 4.0, 1 / 4 + 12 - 4),
        ((2.0, -4.0), (1.0, -1.0), 1.0, 1 / 4 + 1 + 2),  # negative curvature falls on to the edge
        ((2.0, -4.0), (0.0, 0.0), 1.0, 2.0),  # a saddle promises a gain though its gradient is 0
        ((5.0, 0.0), (5.0, 0.25), 1.0, 2.5 + 0.25),  # a flat direction: the slope times the radius
    ],
)
def test_the_gain_in_a_box(
    eigenvalues: tuple[float, float], slopes: tuple[float, float], radius: float, gain: float
) -> None:
    hessian, axes = rotated(*eigenvalues)
    found = predicted_gain(axes @ double(slopes), hessian, radius)
    assert float(found) == pytest.approx(gain, rel=1e-12, abs=1e-14)


def test_slack_adds_standard_errors_along_each_axis() -> None:
    """Four estimates whose means along the axes are 1 and -4, with standard errors sqrt(0.02 / 3) and sqrt(0.5 / 3)."""
    hessian, axes = rotated(2.0, 8.0)
    scatter = double([[0.1, 0.5], [-0.1, 0.5], [0.1, -0.5], [-0.1, -0.5]]) * 2**0.5
    along = double([1.0, -4.0]) + scatter
    found = predicted_gain(along @ axes.T, hessian, 1.0, slack=1.5)
    slopes = 1 + 1.5 * math.sqrt(0.02 / 3), 4 + 1.5 * math.sqrt(0.5 / 3)
    assert float(found) == pytest.approx(slopes[0] ** 2 / 4 + slopes[1] ** 2 / 16, rel=1e-12)


def test_the_gain_of_one_axis_is_the_best_over_a_grid() -> None:
    at = torch.linspace(0, 1.5, 150_001, dtype=torch.float64)
    for slope, curvature in [(0.7, 2.0), (0.7, 0.1), (0.7, -3.0), (4.0, 2.0)]:
        best = float((slope * at - curvature * at**2 / 2).max())
        found = float(predicted_gain(double([-slope]), double([[curvature]]), 1.5))
        assert found == pytest.approx(best, abs=1e-9)  # curvature / 2 * (half a grid step)^2 < 1e-10


def test_what_is_not_finite_promises_everything() -> None:
    hessian = torch.eye(2).double().repeat(3, 1, 1)
    hessian[1, 0, 1] = math.nan
    gradient = double([[1.0, math.inf], [0.0, 0.0], [1.0, 2.0]])
    assert predicted_gain(gradient, hessian, 10.0).tolist() == [math.inf, math.inf, 2.5]
