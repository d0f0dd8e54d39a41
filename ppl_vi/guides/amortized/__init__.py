"""Amortized guide families for real latents: how an encoder's outputs become a distribution over z.

A family is `Callable[[int], Head]`: given the number of latents D it makes a `Head` (`head.py`), which turns the
encoder's outputs for a data point, the local parameters of that point, into a distribution. A new family is one file,
such as `full.py`, and one line in `AMORTIZED`.
"""

from __future__ import annotations

from collections.abc import Callable

from ppl_vi.guides.amortized.diagonal import Diagonal
from ppl_vi.guides.amortized.flow import Flow
from ppl_vi.guides.amortized.full import Full
from ppl_vi.guides.amortized.head import Head
from ppl_vi.guides.amortized.mixture import Mixture

AMORTIZED: dict[str, Callable[[int], Head]] = {
    "diagonal": Diagonal,
    "full": Full,
    "mixture": Mixture,
    "flow": Flow,
}

__all__ = ["AMORTIZED", "Head"]
