"""`Approximation`: draws from any system by the names of the model's latent sites, with or without log q."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ppl_vi.runtime.pickling import Pickled
from ppl_vi.runtime.showing import Summarized

Draws = dict[str, np.ndarray]
LogDensity = Callable[[Draws], np.ndarray]


@dataclass(frozen=True, eq=False, repr=False)
class Approximation(Pickled, Summarized):
    """An approximation of a posterior, from any system: what `ppl_vi.measure` takes.

    Attributes:
        draws: for each latent site its draws `(chain, draw, *site.shape)`, on the site's own support: a scale is
            positive, and not its logarithm.
        log_q: log q of each draw, nats, `(chain, draw)`, a normalised density over the sites as they are in `draws`; or
            a function of draws `{site: (n, *site.shape)}` that returns `(n,)`. None where the density is not known.
        name: what tables call it, such as "NumPyro AutoNormal".
        system: what made it, such as "numpyro 0.22.0".
        seconds: how long that took, where it is known.

    Raises:
        TypeError: `draws` is no dict of arrays of numbers, or `log_q` neither an array nor a function.
        ValueError: there are no draws, the arrays do not have the same `(chain, draw)`, or `log_q` has another shape.
    """

    draws: Draws
    log_q: np.ndarray | LogDensity | None = None
    name: str = ""
    system: str = ""
    seconds: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.draws, Mapping):
            raise TypeError(
                "draws must be a dict of arrays (chain, draw, *shape) by the names of the latent sites; "
                f"got {type(self.draws).__name__}"
            )
        draws = {str(name): _numbers(f"the draws of '{name}'", value) for name, value in self.draws.items()}
        _check_shapes(draws)
        object.__setattr__(self, "draws", draws)
        if self.log_q is not None and not callable(self.log_q):
            log_q, shape = _numbers("log_q", self.log_q), next(iter(draws.values())).shape[:2]
            if log_q.shape != shape:
                raise ValueError(
                    f"log_q must have a number for each draw, (chain, draw) = {shape}; got the shape {log_q.shape}"
                )
            object.__setattr__(self, "log_q", log_q)

    @property
    def num_chains(self) -> int:
        """How many chains there are."""
        return int(next(iter(self.draws.values())).shape[0])

    @property
    def num_draws(self) -> int:
        """How many draws each chain has."""
        return int(next(iter(self.draws.values())).shape[1])

    def heading(self) -> str:
        """Such as `Approximation NumPyro AutoNormal`."""
        return f"Approximation {self.name}".rstrip()

    def summary(self) -> Mapping[str, str]:
        """What it is of, how many draws there are, and whether their density is known."""
        return {
            "": f"{self.num_chains} x {self.num_draws} draws of {', '.join(self.draws)}",
            "log q": "unknown" if self.log_q is None else "a function" if callable(self.log_q) else "of each draw",
            "by": self.system,
        }


def _numbers(what: str, value: Any) -> np.ndarray:
    """An array of floats, of a tensor that needs a gradient as well."""
    if np.ma.is_masked(value):
        raise ValueError(f"{what} are a masked array: leave the masked draws out, in each site alike")
    kind = type(value).__name__
    try:
        array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
        kind += f" of {array.dtype}" if array.ndim else ""
        if array.dtype.kind not in "iuf":
            raise TypeError
        return array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{what} must be an array of real numbers; got {kind}") from error


def _check_shapes(draws: Draws) -> None:
    """Refuses draws that do not have the two leading axes (chain, draw), the same for each site."""
    if not draws:
        raise ValueError("draws must hold at least one latent site, an array (chain, draw, *shape); got an empty dict")
    first, leading = next(iter(draws)), next(iter(draws.values())).shape[:2]
    for name, value in draws.items():
        if value.ndim < 2:
            raise ValueError(
                f"draws must have the shape (chain, draw, *shape): those of '{name}' have {value.shape}; "
                "for one chain put an axis in front, as in draws[None]"
            )
        if value.shape[:2] != leading:
            raise ValueError(
                f"all sites must have the same (chain, draw): '{first}' has {leading}, '{name}' {value.shape[:2]}"
            )
    if 0 in leading:
        raise ValueError(f"draws must hold at least one draw; (chain, draw) is {leading}")
