"""The normal density tilted by an exponential and cut to an interval: mass, moments and quantiles, stable everywhere.

Every truncated normal is, in the right frame, the *tilted* law with density proportional to

    exp(-c u - u^2 / 2)    on    lo <= u <= hi.

Two frames are enough, and :class:`TiltedMoments` and :func:`tilted_quantile` take their arguments in one of them:

- **edge frame**: `lo = 0`, `hi` is the width, `c >= -1`. The origin is the bound that is nearer to the normal's peak.
  Used for tails and for narrow intervals. Nothing cancels: the density falls, and its scale is about 1 / c.
- **centre frame**: `c = 0`, `lo < 0 < hi`, `hi - lo > 2`. The origin is the peak. Used where the interval holds the
  peak and is wide.

In the edge frame a 28-point Gauss-Legendre rule over the part of the interval that holds all but exp(-44) of the mass
gives the mass, the mean and the central moments. No difference of error functions is taken, hence nothing cancels in
narrow intervals or far tails. It costs two to three calls of `erfcx`; the textbook formula takes two for the mass.
In the centre frame the error function is safe.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)
# Nodes of the Gauss-Legendre rule. By measurement against mpmath, 20 leave an error of 1e-10 in the fourth moment, and
# 24 one of 1e-13; more than 28 only add rounding.
NUM_NODES = 28
# Elements that are evaluated at once: their tables of 28 columns take 2 MB, and stay in the processor's cache.
MAX_ELEMENTS_AT_ONCE = 8192
# Where the exponent has fallen by this many nats, the rest of the interval is left out. exp(-44) = 8e-20 is small even
# in the fourth moment, where the tail that is cut off counts 44^4 times.
NEGLIGIBLE_EXPONENT = 44.0


def elementwise(
    partials: Callable[..., tuple[Tensor, ...]],
) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Makes a function `value(*inputs)` of tensors differentiable by derivatives that are given in closed form.

    Args:
        partials: `partials(output, *inputs)` gives one partial derivative for each input. It is built from
            differentiable functions, so that derivatives of derivatives exist too. All inputs and the output have one
            shape.

    Returns:
        A decorator. The decorated function works under `torch.func` transforms, forward mode and `make_fx` tracing.
    """

    def decorate(value: Callable[..., Tensor]) -> Callable[..., Tensor]:
        class Elementwise(torch.autograd.Function):
            generate_vmap_rule = True

            @staticmethod
            def forward(*inputs: Tensor) -> Tensor:
                return value(*inputs)

            @staticmethod
            def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
                ctx.save_for_backward(output, *inputs)
                ctx.save_for_forward(output, *inputs)

            @staticmethod
            def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
                return tuple(grad * partial for partial in partials(*ctx.saved_tensors))

            @staticmethod
            def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
                terms = zip(partials(*ctx.saved_tensors), tangents, strict=True)
                return _sum(partial * tangent for partial, tangent in terms if tangent is not None)

        Elementwise.__name__ = Elementwise.__qualname__ = value.__name__

        @functools.wraps(value)
        def apply(*inputs: Tensor) -> Tensor:
            return Elementwise.apply(*torch.broadcast_tensors(*inputs))

        return apply

    return decorate


class TiltedMoments(torch.autograd.Function):
    """Log mass, end densities, mean and central moments of the tilted law, for any order of derivative.

    `TiltedMoments.apply(order, c, lo, hi)` returns a tuple of tensors, each of the arguments' common shape:

        log_mass      log of the integral of exp(-c u - u^2 / 2) / sqrt(2 pi) over [lo, hi]
        density_lo    density at `lo`                           (order >= 1, as all that follow)
        density_hi    density at `hi`
        mean          E u
        central[n]    E (u - mean)^n for n = 2, ..., order

    Derivatives are closed forms in the same quantities, since the law is an exponential family in `c` (a derivative
    in `c` brings the next central moment) and a bound acts only through the density at it.

    Source: N. L. Johnson, S. Kotz and N. Balakrishnan, Continuous Univariate Distributions, volume 1 (1994), section
    13.10.1; P. J. Davis and P. Rabinowitz, Methods of Numerical Integration (1984), for the quadrature rule.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(order: int, c: Tensor, lo: Tensor, hi: Tensor) -> tuple[Tensor, ...]:
        """Each element's law is in one of the module's two frames; `lo` and `hi` may be infinite."""
        return _in_blocks(functools.partial(_moments, order), c, lo, hi)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.order = inputs[0]
        ctx.save_for_backward(*inputs[1:])
        ctx.save_for_forward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows = _tilted_partials(ctx.order, *ctx.saved_tensors)
        return None, *(_sum(grad * row[i] for grad, row in zip(grads, rows, strict=True)) for i in range(3))

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> tuple[Tensor, ...]:
        rows = _tilted_partials(ctx.order, *ctx.saved_tensors)
        return tuple(_sum(p * t for p, t in zip(row, tangents, strict=True) if t is not None) for row in rows)


def tilted_quantile(lower: Tensor, upper: Tensor, c: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
    """Quantile of the tilted law.

    Args:
        lower: the probability below the quantile.
        upper: the probability above it, `1 - lower`. Both are asked for, because either may be too small for its
            difference from 1 to be exact.
        c, lo, hi: the law, in one of the module's two frames.

    Returns:
        The `u` with `lower` of the mass below it; exactly `lo` and `hi` where `lower` and `upper` are zero.
    """
    return _in_blocks(_quantile, lower, upper, c, lo, hi)[0]


def _in_blocks(function: Callable[..., tuple[Tensor, ...]], *inputs: Tensor) -> tuple[Tensor, ...]:
    """Evaluates an elementwise function block by block, so that the quadrature's tables stay in the processor's cache.

    This makes large batches twice as fast, and they take a fraction of the memory. While a graph is traced, all
    elements are evaluated at once: the compiler of the graph merges the operations, and no tables are stored.
    """
    inputs = torch.broadcast_tensors(*inputs)
    whole = inputs[0]
    traced = torch.compiler.is_compiling() or _get_current_dispatch_mode() is not None
    if traced or whole.device.type != "cpu" or whole.numel() <= MAX_ELEMENTS_AT_ONCE:
        return function(*inputs)
    blocks = zip(*(x.reshape(-1).split(MAX_ELEMENTS_AT_ONCE) for x in inputs), strict=True)
    pieces = zip(*(function(*block) for block in blocks), strict=True)
    return tuple(torch.cat(piece).reshape(whole.shape) for piece in pieces)


def _moments(order: int, c: Tensor, lo: Tensor, hi: Tensor) -> tuple[Tensor, ...]:
    """The outputs of :class:`TiltedMoments`; each frame's formula gets harmless numbers where the other one counts."""
    centred = lo < 0
    edge = _edge_moments(order, c, torch.where(centred, 1.0, hi))
    centre = _centre_moments(order, torch.where(centred, lo, -2.0), torch.where(centred, hi, 2.0))
    return tuple(torch.where(centred, a, b) for a, b in zip(centre, edge, strict=True))


def _quantile(lower: Tensor, upper: Tensor, c: Tensor, lo: Tensor, hi: Tensor) -> tuple[Tensor]:
    """`tilted_quantile` as a tuple of one; each frame's formula gets harmless numbers where the other one counts."""
    centred = lo < 0
    edge = _edge_quantile(lower, upper, c, torch.where(centred, 1.0, hi))
    centre = _centre_quantile(lower, upper, torch.where(centred, lo, -2.0), torch.where(centred, hi, 2.0))
    quantile = torch.where(centred, centre, edge)
    return (torch.where(lower == 0, lo, torch.where(upper == 0, hi, quantile)),)


def _sum(terms: Any) -> Tensor:
    return functools.reduce(torch.add, terms)


def _tilted_partials(order: int, c: Tensor, lo: Tensor, hi: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Derivatives in (c, lo, hi), one row for each output of :class:`TiltedMoments`."""
    _, f_lo, f_hi, mean, *rest = TiltedMoments.apply(order + 1, c, lo, hi)
    rows = [(-mean, -f_lo, f_hi)]
    if order == 0:
        return rows
    # A bound at which the density is 0 has no influence. It may be infinite: moved to the mean it gives no inf * 0.
    lo, hi = torch.where(f_lo > 0, lo, mean), torch.where(f_hi > 0, hi, mean)
    central = [torch.ones_like(mean), torch.zeros_like(mean), *rest]
    rows.append((f_lo * (mean - lo), f_lo * (f_lo - c - lo), -f_lo * f_hi))
    rows.append((f_hi * (mean - hi), f_lo * f_hi, -f_hi * (f_hi + c + hi)))
    rows.append((-central[2], f_lo * (mean - lo), f_hi * (hi - mean)))
    for n in range(2, order + 1):
        below, here, above = central[n - 1 : n + 2]

        def influence(gap: Tensor, n: int = n, below: Tensor = below, here: Tensor = here) -> Tensor:
            return gap**n - here - n * below * gap

        rows.append((n * central[2] * below - above, -f_lo * influence(lo - mean), f_hi * influence(hi - mean)))
    return rows


@functools.cache
def _unit_rule() -> tuple[list[float], list[float]]:
    """Nodes of the Gauss-Legendre rule on [0, 1], and the logarithms of its weights."""
    nodes, weights = np.polynomial.legendre.leggauss(NUM_NODES)
    return ((1 + nodes) / 2).tolist(), np.log(weights / 2).tolist()


def _edge_nodes(c: Tensor, width: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The nodes of the rule in the edge frame.

    Returns:
        The length of the part of the interval that is not negligible; the nodes as shares of it; and density times
        weight at each node, in units of the length.
    """
    reach = 2 * NEGLIGIBLE_EXPONENT / (c + torch.hypot(c, torch.full_like(c, math.sqrt(2 * NEGLIGIBLE_EXPONENT))))
    length = torch.minimum(width, reach)
    nodes, log_weights = (c.new_tensor(column) for column in _unit_rule())
    # The exponent is log weight - (c length) x - (length^2 / 2) x^2. `addcmul` passes but twice over this large tensor.
    linear, quadratic = (-c * length).unsqueeze(-1), (-length * length / 2).unsqueeze(-1)
    exponent = torch.addcmul(torch.addcmul(log_weights, linear, nodes), quadratic, nodes * nodes)
    return length, nodes, exponent.exp()


def _edge_mass(c: Tensor, width: Tensor) -> Tensor:
    """The integral of exp(-c u - u^2 / 2) from 0 to `width`."""
    length, _, mass = _edge_nodes(c, width)
    return length * mass.sum(-1)


def _edge_moments(order: int, c: Tensor, width: Tensor) -> list[Tensor]:
    """The outputs of :class:`TiltedMoments` in the edge frame."""
    length, nodes, mass = _edge_nodes(c, width)
    total = mass.sum(-1)
    log_mass = torch.log(length * total) - HALF_LOG_TWO_PI
    if order == 0:
        return [log_mass]
    mean = (mass * nodes).sum(-1) / total
    gaps = nodes - mean.unsqueeze(-1)
    central = [length**n * ((mass * gaps**n).sum(-1) / total) for n in range(2, order + 1)]
    density_lo = 1 / (length * total)
    return [log_mass, density_lo, torch.exp(-width * (c + width / 2)) * density_lo, length * mean, *central]


def _centre_moments(order: int, lo: Tensor, hi: Tensor) -> list[Tensor]:
    """The outputs of :class:`TiltedMoments` in the centre frame."""
    outside = _normal_tail(hi) + _normal_tail(-lo)
    log_mass = torch.log1p(-outside)
    if order == 0:
        return [log_mass]
    f_lo, f_hi = (torch.exp(-bound * bound / 2 - HALF_LOG_TWO_PI - log_mass) for bound in (lo, hi))
    # Where exp underflows at a bound, the density there is 0, by which the bound is multiplied: any number will do.
    lo, hi = torch.where(f_lo > 0, lo, 0.0), torch.where(f_hi > 0, hi, 0.0)
    raw = [torch.ones_like(lo), f_lo - f_hi]
    for n in range(1, order):  # integration by parts
        raw.append(n * raw[n - 1] + lo**n * f_lo - hi**n * f_hi)
    mean = raw[1]
    central = [_sum(math.comb(n, k) * raw[k] * (-mean) ** (n - k) for k in range(n + 1)) for n in range(2, order + 1)]
    return [log_mass, f_lo, f_hi, mean, *central]


def _normal_tail(x: Tensor) -> Tensor:
    """Probability that a standard normal variable exceeds `x`."""
    return torch.erfc(x * math.sqrt(0.5)) / 2


def _centre_quantile(lower: Tensor, upper: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
    """The quantile in the centre frame, from the smaller of the untruncated normal's masses below and above it."""
    below, above = _normal_tail(-lo), _normal_tail(hi)
    inside = 1 - below - above
    below, above = below + lower * inside, above + upper * inside
    return torch.where(below < above, 1.0, -1.0).to(lo.dtype) * torch.special.ndtri(torch.minimum(below, above))


def _edge_quantile(lower: Tensor, upper: Tensor, c: Tensor, width: Tensor) -> Tensor:
    """The quantile in the edge frame: a start with an error of a few per cent, then three steps of fourth order.

    The steps solve for the smaller of the masses below and above the quantile. Let m be the mass between 0 and u. Then
    du/dm = exp(R) with R = c u + u^2 / 2, so that Taylor's series of u(m) at the present u is
    u + e + g e^2 / 2 + (1 + 2 g^2) e^3 / 6 + ..., where g = c + u and e is exp(R) times the mass that is still missing.
    """
    log_mass = _edge_moments(0, c, width)[0]
    lower_side = lower < upper
    log_target = log_mass + HALF_LOG_TWO_PI + torch.log(torch.where(lower_side, lower, upper))
    u = _edge_quantile_start(lower, upper, c, width)
    for _ in range(3):
        drop = u * (c + u / 2)
        target = torch.exp(log_target + drop)
        present = _edge_mass(torch.where(lower_side, c, c + u), torch.where(lower_side, u, width - u))
        missing = torch.where(lower_side, target - torch.exp(drop) * present, present - target)
        slope = c + u
        step = missing * (1 + missing * (slope / 2 + missing * (1 + 2 * slope * slope) / 6))
        u = torch.minimum((u + step).clamp_min(0.0), width)
    return u


def _edge_quantile_start(lower: Tensor, upper: Tensor, c: Tensor, width: Tensor) -> Tensor:
    """Inverts an approximate cumulative hazard, H(u) = R(u) + log h(c + u) - log h(c), by two Newton steps.

    h(x) = (1 - 1/pi) x + sqrt(x^2 / pi^2 + 2 / pi) is within 1% of the normal hazard for x >= 0.
    Source: A. V. Boyd, Inequalities for Mills' ratio (1959).
    """

    def hazard(x: Tensor) -> Tensor:
        return (1 - 1 / math.pi) * x + torch.hypot(x / math.pi, torch.full_like(x, math.sqrt(2 / math.pi)))

    x = c.clamp_min(0.0)
    start = hazard(x)
    cut = width * (x + width / 2) + torch.log(hazard(x + width) / start)
    goal = torch.where(
        lower < upper, -torch.log1p(lower * torch.expm1(-cut)), -torch.log(upper + lower * torch.exp(-cut))
    )
    u = 2 * (goal / start) / (1 + torch.sqrt(1 + 2 * goal * (start - x) / start))
    for _ in range(2):
        here = hazard(x + u)
        u = (u + (goal - u * (x + u / 2) - torch.log(here / start)) / here).clamp_min(0.0)
    # Where the peak is inside (c < 0) the interval is at most two standard deviations wide: nearly uniform.
    return torch.where(c < 0, lower * width, torch.minimum(u, width))
