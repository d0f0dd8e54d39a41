"""`same_density`: whether another system's model has the density that ours has, before anything is compared.

Both log densities are taken at points of the posterior. With d = theirs - ours, they are the same where all d are 0; d
is a constant where one of them is not normalised; and d = log |det dz/du| of a site where theirs is a density over that
site's unconstrained number u, as Stan and PyMC have it inside, and ours over z itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from ppl_vi.approximations.approximation import Draws
from ppl_vi.runtime.pickling import Pickled
from ppl_vi.runtime.showing import Summarized
from ppl_vi.target.evaluation import log_joint as log_joint_at
from ppl_vi.target.isolation import one_at_a_time
from ppl_vi.target.sites import Latents, constrain, split
from ppl_vi.target.target import Target
from ppl_vi.truth import Truth

# Rounding of a log density of the size of 1, in units of the floating-point numbers' relative spacing: sums of many
# terms lose some digits.
ROUNDING_UNITS = 1000
Kind = Literal["same", "constant", "jacobian", "different"]


@dataclass(frozen=True, eq=False, repr=False)
class SameDensity(Pickled, Summarized):
    """What `same_density` found. It is true where both densities are the same.

    Attributes:
        kind: "same"; "constant", where they differ by a constant; "jacobian", where they differ by the log Jacobian
            of the map from unconstrained numbers, and perhaps a constant; "different" for another model.
        difference: theirs minus ours at each point, nats, `(N,)`.
        tolerance: what counts as no difference, nats.
        constant: the constant by which they differ, nats; nan for another model.
        spread: how far the differences are from what `kind` says, nats, the largest of all points.
        jacobians: for each site in question by how many times its log Jacobian they differ.
        largest: the largest difference, nats.
        where: the latents there, by site.
        theirs: their log density there, nats.
        ours: our log density there, nats.
        is_single: whether the other density was computed in single precision.
    """

    kind: Kind
    difference: np.ndarray
    tolerance: float
    constant: float
    spread: float
    jacobians: dict[str, float]
    largest: float
    where: Draws
    theirs: float
    ours: float
    is_single: bool = False

    def __bool__(self) -> bool:
        return self.kind == "same"

    def __str__(self) -> str:
        return self.text

    def heading(self) -> str:
        """Such as `SameDensity at 200 points`."""
        return f"SameDensity at {len(self.difference)} points"

    def summary(self) -> Mapping[str, str]:
        """What was found, in words."""
        return {"": self.text}

    @property
    def text(self) -> str:
        """What was found, in words."""
        if self.kind == "same":
            return f"the same density: equal within {self.largest:.1g} nats at {len(self.difference)} points"
        if self.kind == "constant":
            return (
                f"the same density up to a constant: theirs is ours {self.constant:+.10g} nats (± {self.spread:.1g}): "
                "one of them leaves out a normalisation, so that log p(x) and ELBOs differ by as much"
            )
        if self.kind == "jacobian":
            return self._about_jacobians()
        hint = "; theirs is in single precision, compute it in double" if self.is_single else ""
        at = ", ".join(f"{name} = {_short(value)}" for name, value in self.where.items())
        return (
            f"another model: theirs is {self.theirs:.6g} and ours {self.ours:.6g} nats at {at}, and the difference "
            f"ranges from {np.min(self.difference):.4g} to {np.max(self.difference):.4g} nats{hint}"
        )

    def _about_jacobians(self) -> str:
        more = {name: factor for name, factor in self.jacobians.items() if factor > 0}
        less = {name: factor for name, factor in self.jacobians.items() if factor < 0}
        rest = "" if abs(self.constant) <= self.tolerance else f", and a constant of {self.constant:+.10g} nats"
        both = [
            f"{which} log |Jacobian| of {', '.join(f'{_times(abs(f))}{name}' for name, f in some.items())}"
            for which, some in (("plus", more), ("minus", less))
            if some
        ]
        ours = "theirs is a density over the unconstrained number of each, ours over the latent itself"
        return f"the same model in another parametrisation: theirs is ours {' and '.join(both)}{rest}: {ours}"


@one_at_a_time()
def same_density(
    target: Target | Truth,
    log_joint: Callable[[dict[str, Any]], Any],
    *,
    num_points: int = 200,
    seed: int = 0,
    tolerance: float = 1e-8,
    names: Mapping[str, str] | None = None,
    vectorised: bool = False,
) -> SameDensity:
    """Compares another system's log p(x, z) with ours at points of the posterior.

    Args:
        target: our model with its data, of one problem. Points are of its normal approximation at the mode; of a
            `Truth` they are of the posterior itself.
        log_joint: the other log density, nats: a function of the latents at one point `{site: (*shape)}`, as NumPy
            arrays on the sites' own supports, to a number.
        num_points: how many points.
        seed: of the points.
        tolerance: the difference that counts as none, nats. Where log p(x, z) is so large that it is rounded by more,
            the rounding counts.
        names: what the other function calls a site, `{"theirs": "ours"}`.
        vectorised: whether the function takes all points at once, `{site: (N, *shape)}` to `(N,)`.

    Raises:
        TypeError: `target` or `log_joint` is something else.
        ValueError: the target poses several problems, a name is wrong, or the function raises or returns no number.
    """
    truth = target if isinstance(target, Truth) else None
    target = truth.target if truth is not None else target
    if not isinstance(target, Target) or not callable(log_joint):
        raise TypeError(
            f"expected a Target or a Truth and a function; got {type(target).__name__} and {type(log_joint).__name__}"
        )
    if target.num_problems != 1:
        raise ValueError(f"'{target.name}' poses {target.num_problems} problems: choose one by Target.rows")
    called = _called(target, names or {})
    u = _points(target, truth, num_points, seed)
    latents, _ = target.constrain(u)
    ours = log_joint_at(target, {name: value[None] for name, value in latents.items()})[0].cpu().numpy()
    arrays = {name: value.cpu().numpy() for name, value in latents.items()}
    theirs, is_single = _theirs(log_joint, {called[name]: value for name, value in arrays.items()}, vectorised)
    return _judged(target, u, arrays, theirs, ours, tolerance, is_single)


def _called(target: Target, names: Mapping[str, str]) -> dict[str, str]:
    """What the other function calls each of our sites."""
    sites = [site.name for site in target.latents]
    wrong = [ours for ours in names.values() if ours not in sites]
    if wrong:
        raise ValueError(f"names: '{target.name}' has no latent site '{wrong[0]}'; it has {', '.join(sites)}")
    return {name: name for name in sites} | {ours: theirs for theirs, ours in names.items()}


def _points(target: Target, truth: Truth | None, num: int, seed: int) -> torch.Tensor:
    """Points of the posterior, or of a normal at its mode, in unconstrained space, `(N, D)`."""
    if truth is not None and truth.points:
        latents = truth.draws(num, seed=seed)
        return target.unconstrain(latents)
    normal = target.start
    noise = np.random.default_rng(seed).standard_normal((num, target.dim))
    return normal.loc[0] + normal.scale[0] * torch.from_numpy(noise).to(normal.loc)


def _theirs(log_joint: Callable[[dict[str, Any]], Any], points: Draws, vectorised: bool) -> tuple[np.ndarray, bool]:
    """The other log density at each point, and whether it came in single precision."""
    num = len(next(iter(points.values())))
    try:
        if vectorised:
            found = np.asarray(log_joint(points))
        else:
            each = [np.asarray(log_joint({name: value[i] for name, value in points.items()})) for i in range(num)]
            found = np.stack([one.reshape(()) for one in each])
    except Exception as error:  # the function is the user's
        first, *_ = str(error).splitlines() or [""]
        raise ValueError(
            f"log_joint must take a dict of {', '.join(f'{k} {v.shape[1:]}' for k, v in points.items())} and return a "
            f"number; it raised {type(error).__name__}: {first}"
        ) from error
    if found.shape != (num,) or found.dtype.kind not in "iuf":
        raise ValueError(f"log_joint must return numbers of the shape {(num,)}; got {found.dtype} of {found.shape}")
    return found.astype(np.float64), found.dtype.itemsize < np.dtype(np.float64).itemsize


def _judged(
    target: Target,
    u: torch.Tensor,
    points: Draws,
    theirs: np.ndarray,
    ours: np.ndarray,
    tolerance: float,
    is_single: bool,
) -> SameDensity:
    """What the differences are."""
    with np.errstate(invalid="ignore"):
        difference = np.where(theirs == ours, 0.0, theirs - ours)
    finite = bool(np.isfinite(difference).all())
    size = float(np.abs(ours[np.isfinite(ours)]).max(initial=1.0))
    tolerance = max(tolerance, ROUNDING_UNITS * float(np.finfo(np.float64).eps) * size)
    away = np.abs(difference - (np.median(difference) if finite else 0.0))
    worst = int(np.argmax(np.where(np.isfinite(away), away, np.inf)))
    largest = float(np.abs(difference).max()) if finite else float("inf")
    kind: Kind = "different"
    constant, spread = float("nan"), float("nan")
    jacobians: dict[str, float] = {}
    if finite:
        constant = float(difference.mean())
        spread = float(np.abs(difference - constant).max())
        kind = "same" if largest <= tolerance else "constant" if spread <= tolerance else "different"
        if kind == "different":
            kind, constant, spread, jacobians = _by_jacobians(target, u, difference, tolerance)
    where = {name: value[worst] for name, value in points.items()}
    at = (float(theirs[worst]), float(ours[worst]))
    return SameDensity(
        kind, difference, tolerance, constant, spread, jacobians, largest, where, *at, is_single=is_single
    )


def _by_jacobians(
    target: Target, u: torch.Tensor, difference: np.ndarray, tolerance: float
) -> tuple[Kind, float, float, dict[str, float]]:
    """Whether the differences are a constant and multiples of the sites' log |Jacobian|s."""
    own = {} if target.moving else _log_jacobians(target, u)
    names = [name for name, value in own.items() if np.ptp(value) > tolerance]
    if not names:
        return "different", float("nan"), float(np.ptp(difference)), {}
    basis = np.stack([np.ones(len(difference)), *(own[name] for name in names)], 1)
    factors = np.linalg.lstsq(basis, difference, rcond=None)[0]
    rounded = np.where(np.abs(factors - factors.round()) < 1e-6, factors.round(), factors)
    constant = float((difference - basis[:, 1:] @ rounded[1:]).mean())
    left = float(np.abs(difference - constant - basis[:, 1:] @ rounded[1:]).max())
    if left > max(tolerance, tolerance * float(np.abs(basis).max())):
        return "different", float("nan"), left, {}
    found = {name: float(factor) for name, factor in zip(names, rounded[1:], strict=True) if factor}
    return "jacobian", constant, left, found


def _log_jacobians(target: Target, u: torch.Tensor) -> dict[str, np.ndarray]:
    """log |det dz/du| of each site at each point."""
    parts: Latents = split(target.latents, u)
    return {
        site.name: constrain([site], parts[site.name].reshape(len(u), -1))[1].cpu().numpy() for site in target.latents
    }


def _short(value: np.ndarray) -> str:
    """A value in few characters: the first numbers of an array."""
    flat = np.asarray(value).ravel()
    shown = ", ".join(f"{number:.5g}" for number in flat[:3]) + (", ..." if flat.size > 3 else "")
    return shown if flat.size == 1 else f"[{shown}]"


def _times(factor: float) -> str:
    return "" if factor == 1 else f"{factor:g} times that of "
