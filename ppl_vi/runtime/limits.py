"""Limits on how far a guide may be from the posterior, as users name them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Limit:
    """What a limit is on.

    Attributes:
        metric: its name in the records.
        words: what messages call it.
        help: what it is, for those who choose a limit.
        unit: of the limit and the value, " nats" or "".
        is_least: whether the value must be at least the limit, instead of at most.
        by_latent: whether it is kept by each latent number.
        lowest, highest: the limits that can be meant.
    """

    metric: str
    words: str
    help: str
    unit: str = ""
    is_least: bool = False
    by_latent: bool = False
    lowest: float = 0.0
    highest: float = math.inf


# By the names of the arguments in Python and, with dashes, of the options.
LIMITS: dict[str, Limit] = {
    "max_reverse_kl": Limit("reverse_kl", "reverse KL", "log p(x) - ELBO", " nats"),
    "max_forward_kl": Limit("forward_kl", "forward KL", "KL(p || q)", " nats"),
    "max_family_gap": Limit("family_gap", "family gap", "reverse KL of the family's best member", " nats"),
    "max_start_gap": Limit("start_gap", "start gap", "what another start would win", " nats"),
    "max_optimization_gap": Limit("optimization_gap", "optimization gap", "what more steps would win", " nats"),
    "min_sd_ratio": Limit(
        "sd_ratio",
        "sd ratio",
        "the guide's sd / the posterior's, of each latent number",
        is_least=True,
        by_latent=True,
    ),
    "max_sd_ratio": Limit("sd_ratio", "sd ratio", "the same", by_latent=True),
    "min_coverage": Limit(
        "coverage_90",
        "coverage of the 90% interval",
        "what the guide's 90% interval covers, such as 0.85, of each latent number",
        is_least=True,
        by_latent=True,
        highest=1.0,
    ),
    "max_khat": Limit("khat", "k-hat", "k-hat, such as 0.7; it has no stated error", lowest=-math.inf),
}


def limits_of(given: Mapping[str, float | None]) -> dict[str, float]:
    """The limits that are given, by name.

    Args:
        given: a number or None for each name.

    Raises:
        TypeError: one is no number.
        ValueError: there is none, or one can't be meant: it is not finite, or out of range.
    """
    found = {name: _meant(name, value) for name, value in given.items() if value is not None}
    if not found:
        raise ValueError(f"expected a limit at least, such as max_reverse_kl=0.05: there are {', '.join(LIMITS)}")
    return found


def _meant(name: str, value: float) -> float:
    limit = LIMITS[name]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {value!r:.40}")
    if not (math.isfinite(value) and limit.lowest <= value <= limit.highest):
        at_least = f" of at least {limit.lowest:g}" if math.isfinite(limit.lowest) else ""
        at_most = f" and at most {limit.highest:g}" if math.isfinite(limit.highest) else ""
        raise ValueError(f"{name} must be a finite number{at_least}{at_most}, got {value:g}")
    return float(value)
