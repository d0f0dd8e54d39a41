"""A closed interval whose bounds may be infinite, element by element: a constraint and its bijection from the reals."""

from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to, constraints, transform_to
from torch.distributions.transforms import Transform


class closed_interval(constraints.interval):  # noqa: N801 - lower case as all constraints of torch
    """`lower_bound <= value <= upper_bound`.

    The bijection of torch's own `interval` gives NaN where a bound is infinite. Here each element of a batch has a map
    of its own that suits its bounds.
    """


class BoundedTransform(Transform):
    """The map from the reals to an interval, elementwise.

    It is the identity where both bounds are infinite, `low + exp(x)` or `high - exp(x)` where one is finite, and
    `low + (high - low) sigmoid(x)` where both are.

    Args:
        low: lower bounds, `-inf` for none.
        high: upper bounds, `+inf` for none.
    """

    domain = constraints.real
    bijective = True

    def __init__(self, low: Tensor, high: Tensor, cache_size: int = 0) -> None:
        super().__init__(cache_size=cache_size)
        self.low, self.high = low, high

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def codomain(self) -> constraints.Constraint:
        """The interval."""
        return closed_interval(self.low, self.high)

    def with_cache(self, cache_size: int = 1) -> "BoundedTransform":
        """The same map with another cache size."""
        return self if self._cache_size == cache_size else BoundedTransform(self.low, self.high, cache_size)

    def __eq__(self, other: Any) -> bool:
        return (
            isinstance(other, BoundedTransform)
            and torch.equal(self.low, other.low)
            and torch.equal(self.high, other.high)
        )

    @property
    def sign(self) -> Tensor:  # type: ignore[override]
        """-1 where the map falls, that is, where only the upper bound is finite."""
        return torch.where(self._from_high(), -1.0, 1.0).to(self.low.dtype)

    def _from_high(self) -> Tensor:
        return self.low.isinf() & ~self.high.isinf()

    def _finite(self) -> tuple[Tensor, Tensor, Tensor]:
        """The number of finite bounds, the bound that the map begins at, and the width of the interval.

        Where there is no such bound or width, it is 0 or 1: an infinite number in the branch of `torch.where` that is
        not taken would still give gradients of nan.
        """
        count = 2 - self.low.isinf().to(torch.int) - self.high.isinf().to(torch.int)
        anchor = torch.where(self._from_high(), self.high, torch.where(self.low.isinf(), 0.0, self.low))
        width = torch.where(count == 2, self.high, 1.0) - torch.where(count == 2, self.low, 0.0)
        return count, anchor, width

    def _call(self, x: Tensor) -> Tensor:
        count, anchor, width = self._finite()
        half_line = anchor + self.sign * torch.exp(torch.where(count == 1, x, 0.0))
        segment = anchor + width * torch.sigmoid(x)
        y = torch.where(count == 2, segment, torch.where(count == 1, half_line, x))
        return torch.clamp(y, self.low, self.high)

    def _inverse(self, y: Tensor) -> Tensor:
        count, anchor, width = self._finite()
        tiny, eps = torch.finfo(y.dtype).tiny, torch.finfo(y.dtype).eps
        distance = torch.where(count == 1, self.sign * (y - anchor), 1.0)
        # The ends would be mapped to infinity and are moved inside by rounding, as torch's SigmoidTransform does.
        share = torch.where(count == 2, (y - anchor) / width, 0.5).clamp(tiny, 1 - eps / 2)
        half_line = distance.clamp_min(tiny).log()
        return torch.where(count == 2, share.log() - torch.log1p(-share), torch.where(count == 1, half_line, y))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """log |dy/dx|, elementwise."""
        count, _, width = self._finite()
        softplus = torch.nn.functional.softplus
        segment = width.log() - softplus(x) - softplus(-x)
        return torch.where(count == 2, segment, torch.where(count == 1, x, 0.0))


@biject_to.register(closed_interval)
@transform_to.register(closed_interval)
def _to_closed_interval(constraint: closed_interval) -> BoundedTransform:
    return BoundedTransform(constraint.lower_bound, constraint.upper_bound)
