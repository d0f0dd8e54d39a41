"""The truncated normal distribution, accurate in the tails and in narrow intervals."""

import math
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Size, Tensor
from torch.distributions import Normal, constraints
from torch.distributions.kl import register_kl
from torch.distributions.utils import broadcast_all

from ppl_vi.distributions.bounded import closed_interval
from ppl_vi.distributions.special import HALF_LOG_TWO_PI, TiltedMoments, elementwise, tilted_quantile


class TruncatedNormal(dist.TorchDistribution):
    r"""Normal(loc, scale) conditioned on `low <= value <= high`.

        p(z) = exp(-(z - loc)^2 / (2 scale^2)) / (scale sqrt(2 pi) Z)
        Z = Phi((high - loc) / scale) - Phi((low - loc) / scale)

    `loc` and `scale` are those of the normal before truncation; `mean` and `stddev` are those of the truncated one. The
    interval may be a half line or the whole line, lie 10,000 standard deviations from `loc`, or be 1e-8 standard
    deviations wide.
    All methods are differentiable in all four parameters, `rsample` by the implicit function theorem; the derivatives
    are closed forms that can be differentiated again. Nothing branches on data, so that `torch.func.vmap` and tracing
    work.

    Outside the support the log density is `-inf` where validation is off, and a `ValueError` where it is on.

    Args:
        loc: mean of the untruncated normal; finite.
        scale: standard deviation of the untruncated normal; positive and finite.
        low: lower bound; `-inf` for none.
        high: upper bound; `+inf` for none.
        validate_args: whether parameters and values are checked; torch's default if `None`.

    Shapes:
        The four parameters broadcast to the batch shape; the event shape is `()`.

    Raises:
        ValueError: if `scale <= 0`, `low >= high`, or a parameter is NaN or, save for a bound, infinite.

    Source: N. L. Johnson, S. Kotz and N. Balakrishnan, Continuous Univariate Distributions, volume 1 (1994), section
    13.10.1, for the formulas; M. Figurnov, S. Mohamed and A. Mnih, Implicit Reparameterization Gradients (2018), for
    `rsample`.
    """

    arg_constraints = {
        "loc": constraints.real,
        "scale": constraints.positive,
        "low": constraints.dependent(is_discrete=False, event_dim=0),
        "high": constraints.dependent(is_discrete=False, event_dim=0),
    }
    has_rsample = True

    def __init__(
        self,
        loc: Tensor | float,
        scale: Tensor | float,
        low: Tensor | float = -math.inf,
        high: Tensor | float = math.inf,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.loc, self.scale, self.low, self.high = broadcast_all(loc, scale, low, high)
        super().__init__(self.loc.shape, validate_args=validate_args)
        if self._validate_args:
            _check_parameters(self.loc, self.scale, self.low, self.high)

    @property
    def parameters(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`(loc, scale, low, high)`, each of the batch shape."""
        return self.loc, self.scale, self.low, self.high

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> constraints.Constraint:
        """The closed interval from `low` to `high`; `biject_to` knows it, infinite bounds included."""
        return closed_interval(self.low, self.high)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "TruncatedNormal":
        """The same law over a larger batch shape."""
        new = self._get_checked_instance(TruncatedNormal, _instance)
        new.loc, new.scale, new.low, new.high = (p.expand(batch_shape) for p in self.parameters)
        super(TruncatedNormal, new).__init__(Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats, of `value`'s shape broadcast with the batch shape."""
        if self._validate_args:
            self._validate_sample(value)
        outside = (value < self.low) | (value > self.high)
        inside_value = torch.where(outside, self.mode, value)
        return torch.where(outside, -math.inf, _log_prob(inside_value, *self.parameters))

    def cdf(self, value: Tensor) -> Tensor:
        """Probability of at most `value`; 0 below the support and 1 above it."""
        if self._validate_args:
            self._validate_sample(value)
        inside_value = torch.clamp(value, self.low, self.high)
        endless = inside_value.isinf()
        probability = _cdf(torch.where(endless, self.mode, inside_value), *self.parameters)
        return torch.where(endless, (value > 0).to(probability.dtype), probability)

    def icdf(self, probability: Tensor) -> Tensor:
        """The value with `probability` below it; `low` at 0 and `high` at 1.

        Raises:
            ValueError: if a probability lies outside [0, 1] and validation is on.
        """
        if self._validate_args and not ((probability >= 0) & (probability <= 1)).all():
            raise ValueError(f"icdf expects probabilities between 0 and 1, but got {probability}")
        return _icdf(probability, *self.parameters)

    def rsample(self, sample_shape: Any = Size()) -> Tensor:
        """Draws by inversion of one uniform number each, differentiable in all parameters."""
        shape = self._extended_shape(sample_shape)
        uniform = torch.rand(shape, dtype=self.loc.dtype, device=self.loc.device)
        # torch.rand rounds down to multiples of eps / 2. A 0 thus represents the interval [0, eps / 2), whose middle
        # takes its place: the quantile at 0 itself may be -inf.
        middle = torch.finfo(uniform.dtype).eps / 4
        return _icdf(torch.where(uniform == 0, middle, uniform), *self.parameters)

    @property
    def log_normalizer(self) -> Tensor:
        """log Z, the log of the untruncated normal's mass between the bounds, in nats."""
        c, lo, hi = _frame(*self.parameters).law
        return TiltedMoments.apply(0, c, lo, hi)[0] - c * c / 2

    @property
    def mean(self) -> Tensor:
        """E z, in the unit of the values."""
        return _mean(*self.parameters)

    @property
    def variance(self) -> Tensor:
        """E (z - E z)^2, in the unit of the values squared."""
        return _variance(*self.parameters)

    @property
    def mode(self) -> Tensor:
        """The point of the support nearest to `loc`, where the density is greatest."""
        return torch.clamp(self.loc, self.low, self.high)

    def entropy(self) -> Tensor:
        """-E log p(z), in nats."""
        return _entropy(*self.parameters)


def _check_parameters(loc: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> None:
    for name, parameter in (("loc", loc), ("scale", scale)):
        if not parameter.isfinite().all():
            raise ValueError(f"TruncatedNormal expects a finite {name}, but got {parameter}")
    if not (low < high).all():
        raise ValueError(f"TruncatedNormal expects low < high, but got low = {low} and high = {high}")


class _Frame(NamedTuple):
    """One of the two frames of :mod:`ppl_vi.distributions.special`, with u = sign * (z - origin) / scale.

    Attributes:
        sign: -1 where the upper bound is nearer to the peak, so that it becomes the left one in the frame; else 1.
        origin: the z of u = 0.
        scale: of the untruncated normal.
        c: slope of the law's exponent -c u - u^2 / 2 at u = 0.
        lo: lower bound of u.
        hi: upper bound of u.
    """

    sign: Tensor
    origin: Tensor
    scale: Tensor
    c: Tensor
    lo: Tensor
    hi: Tensor

    @property
    def law(self) -> tuple[Tensor, Tensor, Tensor]:
        """`(c, lo, hi)`."""
        return self.c, self.lo, self.hi

    def place(self, z: Tensor) -> Tensor:
        """The u of a finite z."""
        return self.sign * (z - self.origin) / self.scale

    def ordered(self, at_lo: Tensor, at_hi: Tensor) -> tuple[Tensor, Tensor]:
        """Turns a pair that belongs to (lo, hi) into one that belongs to (low, high), and back."""
        mirrored = self.sign < 0
        return torch.where(mirrored, at_hi, at_lo), torch.where(mirrored, at_lo, at_hi)


def _frame(loc: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> _Frame:
    """Chooses the frame: its origin is the peak if the interval holds it and is wide, else the bound nearer to it."""
    mirrored = loc - low > high - loc
    sign = 1 - 2 * mirrored.to(loc.dtype)
    near, far = torch.where(mirrored, high, low), torch.where(mirrored, low, high)
    centred = (sign * (near - loc) < 0) & (high - low > 2 * scale)
    origin = torch.where(centred, loc, near)

    def place(bound: Tensor) -> Tensor:
        """The u of a bound, which may be infinite; a gradient of 0 there instead of nan."""
        finite = torch.where(bound.isinf(), origin, bound)
        return torch.where(bound.isinf(), sign * bound, sign * (finite - origin) / scale)

    return _Frame(sign, origin, scale, c=sign * (origin - loc) / scale, lo=place(near), hi=place(far))


class _Law(NamedTuple):
    """A truncated normal in standard deviations of the untruncated one.

    Attributes:
        frame: the frame in which it was computed.
        centre: (E z - loc) / scale.
        offset: (E z - origin) / scale, with the origin of the frame.
        log_mass: log of the integral of the frame's exponential, as :class:`TiltedMoments` gives it.
        density_low: density at `low`, times scale.
        density_high: density at `high`, times scale.
        gap_low: (E z - low) / scale; 0 where the density at `low` is 0, by which it is then multiplied.
        gap_high: (high - E z) / scale; likewise.
        central: E ((z - E z) / scale)^n for n = 2, 3, ...
    """

    frame: _Frame
    centre: Tensor
    offset: Tensor
    log_mass: Tensor
    density_low: Tensor
    density_high: Tensor
    gap_low: Tensor
    gap_high: Tensor
    central: tuple[Tensor, ...]


def _law(order: int, loc: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> _Law:
    """The law's mean and central moments up to `order`, to full relative accuracy."""
    frame = _frame(loc, scale, low, high)
    c, lo, hi = frame.law
    log_mass, density_lo, density_hi, mean, *central = TiltedMoments.apply(order, c, lo, hi)
    gap_lo = torch.where(density_lo > 0, mean - lo, 0.0)
    gap_hi = torch.where(density_hi > 0, hi - mean, 0.0)
    density_low, density_high = frame.ordered(density_lo, density_hi)
    gap_low, gap_high = frame.ordered(gap_lo, gap_hi)
    sign = frame.sign
    return _Law(
        frame=frame,
        centre=sign * (c + mean),
        offset=sign * mean,
        log_mass=log_mass,
        density_low=density_low,
        density_high=density_high,
        gap_low=gap_low,
        gap_high=gap_high,
        central=tuple(moment if n % 2 == 0 else sign * moment for n, moment in enumerate(central, start=2)),
    )


def _log_prob_partials(
    _: Tensor, value: Tensor, loc: Tensor, scale: Tensor, low: Tensor, high: Tensor
) -> tuple[Tensor, ...]:
    """d/dloc = t / scale and d/dscale = (t^2 + 2 t E zeta - Var zeta) / scale.

    Here zeta = (z - loc) / scale and t = zeta - E zeta. `low` acts by the density there, `high` by minus that.
    """
    law = _law(2, loc, scale, low, high)
    gap = (value - law.frame.origin) / scale - law.offset
    return (
        (loc - value) / scale / scale,
        gap / scale,
        (gap * (gap + 2 * law.centre) - law.central[0]) / scale,
        law.density_low / scale,
        -law.density_high / scale,
    )


@elementwise(_log_prob_partials)
def _log_prob(value: Tensor, loc: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """log p(z) = -c u - u^2 / 2 - log(scale) - log(2 pi) / 2 - log_mass, in the frame's terms."""
    frame = _frame(loc, scale, low, high)
    c, lo, hi = frame.law
    u = frame.place(value)
    return -u * (c + u / 2) - scale.log() - HALF_LOG_TWO_PI - TiltedMoments.apply(0, c, lo, hi)[0]


def _upper_gaps(value: Tensor, loc: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The differences E[zeta | z > value] - E[zeta | z < value] and E[zeta^2 | z > value] - E[zeta^2 | z < value].

    Here zeta = (z - loc) / scale. Both conditional laws are truncated normals of their own. Their means are measured
    from `value`, so that the first difference is a sum of positive terms, in which nothing cancels.
    """
    below, above = _law(2, loc, scale, low, value), _law(2, loc, scale, value, high)
    down = (value - below.frame.origin) / scale - below.offset
    up = (above.frame.origin - value) / scale + above.offset
    zeta = (value - loc) / scale
    return up + down, (up + down) * (2 * zeta + up - down) + above.central[0] - below.central[0]


def _cdf_partials(
    probability: Tensor, value: Tensor, loc: Tensor, scale: Tensor, low: Tensor, high: Tensor
) -> tuple[Tensor, ...]:
    """The cdf F falls as `loc` grows by F (1 - F) times the distance of the means above and below."""
    complement = _cdf(-value, -loc, scale, -high, -low)
    density = torch.exp(_log_prob(value, loc, scale, low, high))
    law = _law(1, loc, scale, low, high)
    first, second = _upper_gaps(value, loc, scale, low, high)
    spread = probability * complement / scale
    return (
        density,
        -spread * first,
        -spread * second,
        -complement * law.density_low / scale,
        -probability * law.density_high / scale,
    )


@elementwise(_cdf_partials)
def _cdf(value: Tensor, loc: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The mass from `low` to `value` divided by the mass from `low` to `high`, each computed in its own frame.

    The log mass of a frame leaves out c^2 / 2. The difference of the two squares is therefore added here, as a product
    of sum and difference, in which nothing cancels.
    """
    whole, part = _frame(loc, scale, low, high), _frame(loc, scale, low, value)
    log_ratio = TiltedMoments.apply(0, *part.law)[0] - TiltedMoments.apply(0, *whole.law)[0]
    shift = (part.origin - whole.origin) / scale
    total = (part.origin - loc) / scale + (whole.origin - loc) / scale
    return torch.exp(log_ratio - shift * total / 2)


def _constant_partials(_: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.zeros_like(x) for x in inputs)


@elementwise(_constant_partials)
def _frame_quantile(probability: Tensor, loc: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The quantile as a place u in the frame, with derivatives of 0: `_place_quantile` has the right ones."""
    frame = _frame(loc, scale, low, high)
    return tilted_quantile(*frame.ordered(probability, 1 - probability), *frame.law)


def _instead_partials(_: Tensor, exact: Tensor, rounded: Tensor) -> tuple[Tensor, ...]:
    return torch.zeros_like(exact), torch.ones_like(rounded)


@elementwise(_instead_partials)
def _instead(exact: Tensor, rounded: Tensor) -> Tensor:
    """The value of `exact` with the derivative of `rounded`."""
    return exact.clone()


def _icdf_partials(
    value: Tensor, u: Tensor, probability: Tensor, loc: Tensor, scale: Tensor, low: Tensor, high: Tensor
) -> tuple[Tensor, ...]:
    """dz/dtheta = -(dF/dtheta) / p(z): ratios of densities, formed as exponentials of differences.

    They are taken at `u`: rounding of `value` may move it by much of a narrow interval far from zero. At an infinite
    quantile the derivatives have the limits of an untruncated normal's: 1 in `loc`, infinite in `scale`, 0 in the
    bounds.
    """
    frame = _frame(loc, scale, low, high)
    c, lo, hi = frame.law
    finite = value.isfinite()
    u = _instead(torch.where(finite, u, 0.0), frame.place(torch.where(finite, value, frame.origin)))
    first, second = _upper_gaps(u, -c, torch.ones_like(u), lo, hi)
    drop = u * (c + u / 2)
    inverse_density = scale * torch.exp(drop + HALF_LOG_TWO_PI + TiltedMoments.apply(0, c, lo, hi)[0])
    spread = probability * (1 - probability) * inverse_density / scale
    to_lo = torch.exp(drop - lo * (c + lo / 2))
    to_hi = torch.exp(-(hi - u) * (c + (hi + u) / 2))
    to_low, to_high = frame.ordered(to_lo, to_hi)
    return (
        torch.zeros_like(u),
        torch.where(finite, inverse_density, math.inf),
        torch.where(finite, spread * first, 1.0),
        torch.where(finite, spread * frame.sign * second, value),
        (1 - probability) * to_low,
        probability * to_high,
    )


@elementwise(_icdf_partials)
def _place_quantile(u: Tensor, probability: Tensor, loc: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The z of a quantile `u` in the frame, clamped so that rounding doesn't carry it past a bound."""
    frame = _frame(loc, scale, low, high)
    return torch.clamp(frame.origin + frame.sign * scale * u, low, high)


def _icdf(probability: Tensor, loc: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The quantile with its derivatives in all five arguments."""
    u = _frame_quantile(probability, loc, scale, low, high)
    return _place_quantile(u, probability, loc, scale, low, high)


def _mean_partials(_: Tensor, loc: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, ...]:
    """d/dloc = Var zeta and d/dscale = Cov(zeta, zeta^2), where zeta = (z - loc) / scale."""
    law = _law(3, loc, scale, low, high)
    second, third = law.central
    return (
        second,
        third + 2 * law.centre * second,
        law.density_low * law.gap_low,
        law.density_high * law.gap_high,
    )


@elementwise(_mean_partials)
def _mean(loc: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> Tensor:
    law = _law(1, loc, scale, low, high)
    return law.frame.origin + scale * law.offset


def _variance_partials(_: Tensor, loc: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, ...]:
    """d/dloc = scale Cov(t^2, zeta) and d/dscale = scale Cov(t^2, zeta^2), where t = zeta - E zeta."""
    law = _law(4, loc, scale, low, high)
    second, third, fourth = law.central
    return (
        scale * third,
        scale * (fourth - second * second + 2 * law.centre * third),
        scale * law.density_low * (second - law.gap_low * law.gap_low),
        scale * law.density_high * (law.gap_high * law.gap_high - second),
    )


@elementwise(_variance_partials)
def _variance(loc: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return scale * (scale * _law(2, loc, scale, low, high).central[0])


def _entropy_partials(_: Tensor, loc: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, ...]:
    """d/dloc = Cov(zeta, zeta^2) / (2 scale) and d/dscale = Var(zeta^2) / (2 scale).

    In a bound the derivative is the density there times (entropy + log density there - 1), up to sign. By parts, the
    bracket is minus (width * density at the other bound + E (z - bound)^2 / 2), in units of `scale`: a sum of
    positive terms.
    """
    law = _law(4, loc, scale, low, high)
    second, third, fourth = law.central
    centre, width = law.centre, law.gap_low + law.gap_high
    bracket_low = width * law.density_high + (second + law.gap_low * law.gap_low) / 2
    bracket_high = width * law.density_low + (second + law.gap_high * law.gap_high) / 2
    return (
        (third / 2 + centre * second) / scale,
        ((fourth - second * second) / 2 + 2 * centre * (third + centre * second)) / scale,
        -law.density_low * bracket_low / scale,
        law.density_high * bracket_high / scale,
    )


@elementwise(_entropy_partials)
def _entropy(loc: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> Tensor:
    law = _law(2, loc, scale, low, high)
    c, offset = law.frame.law[0], law.frame.sign * law.offset
    return scale.log() + HALF_LOG_TWO_PI + law.log_mass + c * offset + (law.central[0] + offset * offset) / 2


@register_kl(TruncatedNormal, TruncatedNormal)
def _kl_truncated_normal(p: TruncatedNormal, q: TruncatedNormal) -> Tensor:
    """KL(p || q) in nats: -entropy of p - E_p log q, and `inf` where p's interval isn't inside q's."""
    inside = (p.low >= q.low) & (p.high <= q.high)
    law = _law(2, *broadcast_all(*p.parameters))
    frame = _frame(*q.parameters)
    c, lo, hi = frame.law
    mean = frame.sign * ((law.frame.origin - frame.origin) / q.scale + law.offset * (p.scale / q.scale))
    variance = law.central[0] * (p.scale / q.scale) ** 2
    cross = c * mean + (variance + mean * mean) / 2 + q.scale.log() + HALF_LOG_TWO_PI
    divergence = cross + TiltedMoments.apply(0, c, lo, hi)[0] - p.entropy()
    return torch.where(inside, divergence, math.inf)


@register_kl(TruncatedNormal, Normal)
def _kl_normal(p: TruncatedNormal, q: Normal) -> Tensor:
    """KL to a normal, which is a truncated one without bounds."""
    return _kl_truncated_normal(p, TruncatedNormal(q.loc, q.scale, validate_args=False))
