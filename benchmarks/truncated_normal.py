"""Accuracy and speed of the truncated normal, beside SciPy's and NumPyro's.

    python -m benchmarks.truncated_normal [--quick] [--json FILE|-]

Accuracy is the largest error against mpmath over a fixed table of regimes, in float64. Mpmath is given the same double
precision numbers as the libraries. SciPy takes its bounds in standard deviations, so its errors include the rounding of
that division. Speed is the median time per element over several runs, on one thread.
"""

import argparse
import importlib.util
import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import mpmath
import numpy as np
import scipy
import torch
from mpmath import mpf
from rich.console import Console
from rich.table import Table
from scipy.stats import truncnorm
from torch import Tensor

from ppl_vi.distributions import TruncatedNormal
from ppl_vi.runtime.files import write_text
from ppl_vi.runtime.outputs import UNWRITTEN, one_line, reason_of, why_not_file

# The decimal digits that mpmath computes with. In the narrowest intervals the formulas below lose 80 digits to
# cancellation, so that 50 are left.
DIGITS = 130

INF = math.inf
# For each regime, pairs (alpha, width) in standard deviations: the lower bound minus the peak of the normal density,
# and the length of the interval.
REGIMES: dict[str, list[tuple[float, float]]] = {
    "no bounds": [(-INF, INF)],
    "half line": [(-9.0, INF), (-1.0, INF), (0.0, INF), (2.5, INF)],
    "wide, peak inside": [(-1e4, 2e4), (-1e4, 1e8), (-8.0, 11.0), (-1.0, 2.1), (-0.5, 7.0)],
    "peak outside": [(0.0, 2.0), (0.3, 3.0), (1.0, 1e8), (2.5, 0.4), (6.0, 20.0)],
    "far tail": [(38.0, INF), (300.0, 1.0), (1e4, 1e-4), (1e4, 1e-2), (1e4, INF)],
    "narrow": [(-1.0, 1e-8), (0.0, 1e-5), (0.7, 1e-8), (-0.5, 1.0), (3.0, 1e-3)],
    "narrow in the tail": [(30.0, 1e-8), (1e3, 1e-5), (1e4, 1e-8), (1e4, 1e-6)],
}
# The probabilities whose quantiles are computed, and at whose quantiles the density is evaluated.
PROBABILITIES = [1e-9, 0.2, 0.5, 0.9, 1 - 1e-9]
QUANTITIES = ["log_prob", "log_normalizer", "icdf", "mean", "variance", "entropy"]


def _mass(a: mpf, b: mpf) -> mpf:
    """Phi(b) - Phi(a), as a difference of upper tails; the interval is mirrored where the lower tails are smaller."""
    a, b = (-b, -a) if a + b < 0 else (a, b)
    return (mpmath.erfc(a / mpmath.sqrt(2)) - mpmath.erfc(b / mpmath.sqrt(2))) / 2


def _moments(loc: mpf, scale: mpf, low: mpf, high: mpf) -> tuple[mpf, mpf]:
    a, b = (low - loc) / scale, (high - loc) / scale
    mass = _mass(a, b)
    first = (mpmath.npdf(a) - mpmath.npdf(b)) / mass
    second = 1 + sum(s * x * mpmath.npdf(x) for s, x in ((1, a), (-1, b)) if mpmath.isfinite(x)) / mass
    return first, second - first**2


def exact_log_normalizer(loc: mpf, scale: mpf, low: mpf, high: mpf) -> mpf:
    """log Z by mpmath."""
    return mpmath.log(_mass((low - loc) / scale, (high - loc) / scale))


def exact_log_prob(value: mpf, loc: mpf, scale: mpf, low: mpf, high: mpf) -> mpf:
    """Log density by mpmath."""
    zeta = (value - loc) / scale
    return -(zeta**2) / 2 - mpmath.log(scale * mpmath.sqrt(2 * mpmath.pi)) - exact_log_normalizer(loc, scale, low, high)


def exact_cdf(value: mpf, loc: mpf, scale: mpf, low: mpf, high: mpf) -> mpf:
    """Cumulative probability by mpmath."""
    a, z, b = ((x - loc) / scale for x in (low, value, high))
    return _mass(a, z) / _mass(a, b)


def exact_mean(loc: mpf, scale: mpf, low: mpf, high: mpf) -> mpf:
    """Mean by mpmath."""
    return loc + scale * _moments(loc, scale, low, high)[0]


def exact_variance(loc: mpf, scale: mpf, low: mpf, high: mpf) -> mpf:
    """Variance by mpmath."""
    return scale**2 * _moments(loc, scale, low, high)[1]


def exact_entropy(loc: mpf, scale: mpf, low: mpf, high: mpf) -> mpf:
    """Entropy by mpmath."""
    first, variance = _moments(loc, scale, low, high)
    log_z = exact_log_normalizer(loc, scale, low, high)
    return log_z + mpmath.log(scale * mpmath.sqrt(2 * mpmath.pi)) + (first**2 + variance) / 2


def exact_icdf(probability: mpf, loc: mpf, scale: mpf, low: mpf, high: mpf, *, start: mpf) -> mpf:
    """Quantile by mpmath: Newton on the log of the smaller of the two masses, from `start`.

    Raises:
        ArithmeticError: if the steps don't fall below 1e-60 standard deviations.
    """
    unit = mpmath.sqrt(exact_variance(loc, scale, low, high))
    upper = probability > 0.5
    z = start
    for _ in range(80):
        below = exact_cdf(z, loc, scale, low, high)
        mass, goal = (1 - below, 1 - probability) if upper else (below, probability)
        change = mass * mpmath.log(goal / mass) if mass > 0 else goal
        step = (-change if upper else change) / mpmath.exp(exact_log_prob(z, loc, scale, low, high))
        z = min(max(z + step, low), high)
        if abs(step) < unit * mpf(10) ** -60:
            return z
    raise ArithmeticError(f"no quantile found for {probability} from {start}")


def exact_gradient(function: Callable[..., mpf], *arguments: mpf) -> list[mpf]:
    """The derivatives in all arguments by central differences, with errors below 1e-30; 0 for an infinite argument."""
    *_, scale, low, high = arguments
    h = min(scale, high - low) * mpf(10) ** -40

    def partial(i: int) -> mpf:
        if mpmath.isinf(arguments[i]):
            return mpf(0)
        up, down = (function(*arguments[:i], arguments[i] + d, *arguments[i + 1 :]) for d in (h, -h))
        return (up - down) / (2 * h)

    return [partial(i) for i in range(len(arguments))]


def parameters(alpha: float, width: float, mirrored: bool, loc: float, scale: float) -> tuple[float, ...]:
    """The four parameters `(loc, scale, low, high)` of a case, whose interval may be mirrored at the peak."""
    low = loc + scale * alpha
    high = INF if width == INF else low + scale * width
    return (-loc, scale, -high, -low) if mirrored else (loc, scale, low, high)


def cases(pairs: list[tuple[float, float]]) -> Iterator[tuple[float, ...]]:
    """Each (alpha, width) on both sides of the peak, with the peak at 0 and with the bound at 0."""
    for (alpha, width), mirrored in itertools.product(pairs, (False, True)):
        yield parameters(alpha, width, mirrored, 0.0, 1.0)
        if math.isfinite(alpha):
            yield parameters(alpha, width, mirrored, -0.3 * alpha, 0.3)


def _error(value: float, truth: mpf, unit: mpf) -> float:
    return float(abs(mpf(value) - truth) / max(unit, abs(truth))) if math.isfinite(value) else INF


Errors = dict[str, float]


def _case_errors(numbers: tuple[float, ...], methods: dict[str, Callable[..., float]]) -> Errors:
    """Largest error of each method, relative to max(1, |value|) for logarithms and to max(sd, |value|) for others."""
    exact = [mpf(x) for x in numbers]
    sd = mpmath.sqrt(exact_variance(*exact))
    ours = TruncatedNormal(*(torch.tensor(x, dtype=torch.float64) for x in numbers))
    errors: Errors = {}

    def note(name: str, value: float, truth: mpf, unit: mpf) -> None:
        errors[name] = max(errors.get(name, 0.0), _error(value, truth, unit))

    for name, truth, unit in (
        ("log_normalizer", exact_log_normalizer, 1),
        ("entropy", exact_entropy, 1),
        ("mean", exact_mean, sd),
        ("variance", exact_variance, 0),
    ):
        if name in methods:
            note(name, methods[name](*numbers), truth(*exact), mpf(unit))
    for p in PROBABILITIES:
        z = ours.icdf(torch.tensor(p, dtype=torch.float64)).item()
        note("icdf", methods["icdf"](p, *numbers), exact_icdf(mpf(p), *exact, start=mpf(z)), sd)
        note("log_prob", methods["log_prob"](z, *numbers), exact_log_prob(mpf(z), *exact), mpf(1))
    return errors


def _gradient_error(numbers: tuple[float, ...]) -> float:
    """Largest error of our derivatives in the four parameters, relative to max(|derivative|, its natural size).

    The natural size of a derivative is the size that it has at values about a standard deviation from the mean. A
    derivative that is much smaller is a difference of numbers of that size.
    """
    exact = [mpf(x) for x in numbers]
    inputs = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in numbers]
    law = TruncatedNormal(*inputs)
    sd = mpmath.sqrt(exact_variance(*exact)) / exact[1]
    far = 1 + abs(exact_mean(*exact) - exact[0]) / exact[1]
    score = sd / exact[1]
    jobs: list[tuple[Tensor, list[mpf], list[mpf]]] = []
    for output, function, units in (
        (law.log_normalizer, exact_log_normalizer, [score, far * far / exact[1]]),
        (law.mean, exact_mean, [sd**2, far * sd**2]),
        (law.variance, exact_variance, [sd**3 * exact[1], far * sd**3 * exact[1]]),
    ):
        jobs.append((output, exact_gradient(function, *exact), [*units, sd * score, sd * score]))
    for p in PROBABILITIES[1:-1]:
        value = law.icdf(torch.tensor(p, dtype=torch.float64))
        z = exact_icdf(mpf(p), *exact, start=mpf(value.item()))
        density = mpmath.exp(exact_log_prob(z, *exact))
        slopes = [-slope / density for slope in exact_gradient(exact_cdf, z, *exact)[1:]]
        jobs.append((value, slopes, [sd**2, far * sd**2, mpf(0), mpf(0)]))
        truth = exact_gradient(exact_log_prob, mpf(value.item()), *exact)[1:]
        jobs.append((law.log_prob(value.detach()), truth, [score, far * score, mpf(0), mpf(0)]))
    tiny = mpf(10) ** -50  # densities smaller than this have no correct digit in the reference
    return max(
        _error(slope.item(), truth, unit + tiny)
        for output, truths, units in jobs
        for slope, truth, unit in zip(torch.autograd.grad(output, inputs), truths, units, strict=True)
    )


def _ours() -> dict[str, Callable[..., float]]:
    def law(numbers: tuple[float, ...]) -> TruncatedNormal:
        return TruncatedNormal(*(torch.tensor(x, dtype=torch.float64) for x in numbers), validate_args=False)

    def at(name: str) -> Callable[..., float]:
        return lambda x, *numbers: getattr(law(numbers), name)(torch.tensor(x, dtype=torch.float64)).item()

    def of(name: str) -> Callable[..., float]:
        return lambda *numbers: getattr(law(numbers), name).item()

    return {
        "log_prob": at("log_prob"),
        "icdf": at("icdf"),
        "log_normalizer": of("log_normalizer"),
        "mean": of("mean"),
        "variance": of("variance"),
        "entropy": lambda *numbers: law(numbers).entropy().item(),
    }


def _scipy() -> dict[str, Callable[..., float]]:
    def law(loc: float, scale: float, low: float, high: float) -> Any:
        return truncnorm((low - loc) / scale, (high - loc) / scale, loc, scale)

    return {
        "log_prob": lambda x, *numbers: float(law(*numbers).logpdf(x)),
        "icdf": lambda p, *numbers: float(law(*numbers).ppf(p)),
        "mean": lambda *numbers: float(law(*numbers).mean()),
        "variance": lambda *numbers: float(law(*numbers).var()),
        "entropy": lambda *numbers: float(law(*numbers).entropy()),
    }


def _numpyro() -> dict[str, Callable[..., float]]:
    import jax
    import numpyro.distributions as numpyro_dist

    jax.config.update("jax_enable_x64", True)

    def law(loc: float, scale: float, low: float, high: float) -> Any:
        bounds = {"low": low if math.isfinite(low) else None, "high": high if math.isfinite(high) else None}
        return numpyro_dist.TruncatedNormal(loc, scale, **bounds)

    return {
        "log_prob": lambda x, *numbers: float(law(*numbers).log_prob(x)),
        "icdf": lambda p, *numbers: float(law(*numbers).icdf(p)),
        "mean": lambda *numbers: float(law(*numbers).mean),
        "variance": lambda *numbers: float(law(*numbers).variance),
    }


LIBRARIES = {"ppl_vi": _ours, "SciPy": _scipy, "NumPyro": _numpyro}


def _missing(library: str) -> bool:
    return importlib.util.find_spec({"NumPyro": "numpyro"}.get(library, "torch")) is None


def accuracy(quick: bool) -> list[dict[str, Any]]:
    """One row for each regime and library with the largest error of each quantity, and of our gradients."""
    rows = []
    with mpmath.workdps(DIGITS), np.errstate(all="ignore"):
        for (regime, pairs), library in itertools.product(REGIMES.items(), LIBRARIES):
            if _missing(library):
                continue
            methods = LIBRARIES[library]()
            chosen = list(cases(pairs[-1:] if quick else pairs))
            errors = [_case_errors(numbers, methods) for numbers in chosen]
            row = {name: max(error[name] for error in errors) if name in methods else None for name in QUANTITIES}
            if library == "ppl_vi":
                row["gradients"] = max(_gradient_error(numbers) for numbers in chosen)
            rows.append({"regime": regime, "library": library, "cases": len(chosen), **row})
    return rows


def _nanoseconds(run: Callable[[], Any], num_elements: int, num_runs: int) -> dict[str, float]:
    run()
    times = []
    for _ in range(num_runs):
        begin = time.perf_counter_ns()
        run()
        times.append((time.perf_counter_ns() - begin) / num_elements)
    return {"median": statistics.median(times), "fastest": min(times), "slowest": max(times)}


def _speed_ours(loc: Any, scale: Any, low: Any, high: Any, dtype: torch.dtype) -> dict[str, Callable[[], Any]]:
    numbers = [torch.as_tensor(x, dtype=dtype) for x in (loc, scale, low, high)]
    law = TruncatedNormal(*numbers, validate_args=False)
    inputs = [x.clone().requires_grad_() for x in numbers]
    trained = TruncatedNormal(*inputs, validate_args=False)
    value = law.sample()
    return {
        "log_prob": lambda: law.log_prob(value),
        "draw": law.sample,
        "mean and variance": lambda: (law.mean, law.variance),
        "log_prob, 4 gradients": lambda: torch.autograd.grad(trained.log_prob(value).sum(), inputs),
        "rsample, 4 gradients": lambda: torch.autograd.grad(trained.rsample().sum(), inputs),
    }


def _speed_scipy(loc: Any, scale: Any, low: Any, high: Any) -> dict[str, Callable[[], Any]]:
    a, b = (low - loc) / scale, (high - loc) / scale
    rng = np.random.default_rng(0)
    value = truncnorm.ppf(rng.random(loc.shape), a, b, loc, scale)
    few = slice(0, 200)  # SciPy computes moments in a Python loop, which is too slow for all elements
    return {
        "log_prob": lambda: truncnorm.logpdf(value, a, b, loc, scale),
        "draw": lambda: truncnorm.ppf(rng.random(loc.shape), a, b, loc, scale),
        "mean and variance": lambda: truncnorm.stats(a[few], b[few], loc[few], scale[few]),
    }


def _speed_numpyro(loc: Any, scale: Any, low: Any, high: Any) -> dict[str, Callable[[], Any]]:
    import jax
    import numpyro.distributions as numpyro_dist

    jax.config.update("jax_enable_x64", True)
    numbers = [jax.numpy.asarray(x) for x in (loc, scale, low, high)]

    def law(loc: Any, scale: Any, low: Any, high: Any) -> Any:
        return numpyro_dist.TruncatedNormal(loc, scale, low=low, high=high)

    key = jax.random.PRNGKey(0)
    log_prob = jax.jit(lambda x, *n: law(*n).log_prob(x))
    draw = jax.jit(lambda *n: law(*n).sample(key))
    moments = jax.jit(lambda *n: (law(*n).mean, law(*n).variance))
    value = draw(*numbers)
    return {
        "log_prob": lambda: jax.block_until_ready(log_prob(value, *numbers)),
        "draw": lambda: jax.block_until_ready(draw(*numbers)),
        "mean and variance": lambda: jax.block_until_ready(moments(*numbers)),
    }


def throughput(quick: bool) -> list[dict[str, Any]]:
    """One row for each library, task and batch size: nanoseconds per element."""
    num_runs = 5 if quick else 15
    rows = []
    for num_elements in [1_000] if quick else [1_000, 100_000]:
        rng = np.random.default_rng(1)
        loc, scale = rng.normal(size=num_elements), rng.uniform(0.5, 2.0, num_elements)
        low = loc + scale * rng.uniform(-3, 6, num_elements)
        numbers = (loc, scale, low, low + scale * rng.uniform(0.1, 8, num_elements))
        libraries = {
            "ppl_vi": _speed_ours(*numbers, torch.float64),
            "ppl_vi, float32": _speed_ours(*numbers, torch.float32),
            "SciPy": _speed_scipy(*numbers),
        }
        if not _missing("NumPyro"):
            libraries["NumPyro, jit"] = _speed_numpyro(*numbers)
        for library, tasks in libraries.items():
            for task, run in tasks.items():
                done = min(num_elements, 200) if (library, task) == ("SciPy", "mean and variance") else num_elements
                rows.append(
                    {"library": library, "task": task, "elements": done, "ns": _nanoseconds(run, done, num_runs)}
                )
    return rows


def _show(result: dict[str, Any], console: Console) -> None:
    table = Table(
        title="largest error against mpmath, float64; logarithms over max(1, |value|), others over max(sd, |value|)"
    )
    columns = [*QUANTITIES, "gradients"]
    for name in ("regime", "library", *columns):
        table.add_column(name.replace("_", " "), justify="left" if name in ("regime", "library") else "right")
    for row in result["accuracy"]:
        numbers = ["-" if row.get(name) is None else f"{row[name]:.0e}" for name in columns]
        table.add_row(row["regime"], row["library"], *numbers)
    console.print(table)
    table = Table(title="time per element in ns, one thread: median (fastest to slowest) of several runs")
    for name in ("task", "elements", "library", "ns"):
        table.add_column(name, justify="right" if name in ("elements", "ns") else "left")
    for row in sorted(result["throughput"], key=lambda row: (row["task"], row["elements"])):
        ns = row["ns"]
        table.add_row(
            row["task"],
            f"{row['elements']:,}",
            row["library"],
            f"{ns['median']:,.0f} ({ns['fastest']:,.0f} to {ns['slowest']:,.0f})",
        )
    console.print(table)
    for library in result["not_installed"]:
        console.print(f"{library} is not installed, so it is not compared.")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark; returns the exit code."""
    parser = _Parser(prog="truncated_normal", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one case per regime and one batch size")
    parser.add_argument("--json", metavar="FILE|-", help="write the numbers to FILE, or to standard output for -")
    options = parser.parse_args(arguments)
    if options.json not in (None, "-") and (why := why_not_file(Path(options.json))):
        parser.error(f"--json: {why}")
    torch.set_num_threads(1)
    result = {
        "accuracy": accuracy(options.quick),
        "throughput": throughput(options.quick),
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__, "scipy": scipy.__version__, "mpmath": mpmath.__version__},
        "not_installed": [library for library in LIBRARIES if _missing(library)],
    }
    _show(result, Console(stderr=options.json == "-", width=None))
    if options.json == "-":
        json.dump(result, sys.stdout, indent=2)
    elif options.json:
        try:
            write_text(Path(options.json), json.dumps(result, indent=2) + "\n")
        except OSError as error:
            print(one_line(f"can't write '{options.json}': {reason_of(error)}"), file=sys.stderr)
            return UNWRITTEN
    return 0


if __name__ == "__main__":
    sys.exit(main())
