"""The parameters of a model, before and after they are learned.

A model may have parameters besides its latents, stated by `pyro.param` or `pyro.module`, as in empirical Bayes or with
a decoder. Such a model has a posterior for each value of its parameters. `ppl_vi.svi.learning` finds values and freezes
them; what is measured is the posterior of the frozen model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ppl_vi.target.statements import StatedFunction

# A parameter of at most this many numbers is shown with them, a larger one by its shape, which keeps a line readable.
MAX_SHOWN_NUMBERS = 3


@dataclass(frozen=True, eq=False)
class Learnable:
    """The parameters of a model that are still to be learned.

    Attributes:
        parameters: the user's model as a module that holds the parameters.
        model: the same model, prepared as a target's model is; it computes with these parameters.
    """

    parameters: StatedFunction
    model: Callable[..., Any]


@dataclass(frozen=True, eq=False)
class Learned:
    """What was learned of a model's parameters.

    Attributes:
        values: the parameters by name, as `ppl_vi.target.statements.parameters_of` gives them.
        guide: the guide that they were learned with.
        status: of the fit that they are from, a value of `ppl_vi.svi.status.Status`.
        stop_reason: why that fit stopped.
    """

    values: dict[str, Tensor]
    guide: str
    status: str
    stop_reason: str

    @property
    def summary(self) -> str:
        """Which parameters, with which values, learned with which guide, in one line."""
        shown = ", ".join(f"{name} = {_shown(value)}" for name, value in self.values.items())
        ended = self.status.replace("_", " ")
        return f"the model's parameters are those learned with {self.guide} ({ended}; {self.stop_reason}): {shown}"


def _shown(value: Tensor) -> str:
    if value.numel() > MAX_SHOWN_NUMBERS:
        return f"an array of shape {tuple(value.shape)}"
    return str(
        [float(f"{number:.6g}") for number in value.flatten().tolist()] if value.dim() else float(f"{value:.6g}")
    )
