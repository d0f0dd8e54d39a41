"""The target of a model whose own parameters have been learned."""

from __future__ import annotations

from dataclasses import replace

from ppl_vi.target.arguments import BoundModel
from ppl_vi.target.learned import Learned
from ppl_vi.target.target import Target


def frozen_target(target: Target, learned: Learned) -> Target:
    """The target of the same data whose model has the values that were learned of its parameters.

    It is made anew from the user's model: which sites there are, and where densities end, is looked for at these
    values.

    Args:
        target: a target whose model's parameters are still to be learned.
        learned: what was learned of them.

    Raises:
        ValueError: with these values the model can't be used; the message says why.
    """
    assert isinstance(target.model, BoundModel)
    assert target.learnable is not None
    model = target.learnable.parameters.frozen(learned.values)
    found = Target.of(model, target.model.given, name=target.name, dtype=target.dtype)
    assert isinstance(found.model, BoundModel)
    return replace(found, model=replace(found.model, learned=learned, keywords=target.model.keywords))
