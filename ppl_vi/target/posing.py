"""Poses a problem of what a user gives: a target as it is, or a model with its arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ppl_vi.target.target import Target


def posed(model: Callable[..., Any] | Target, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Target:
    """The target of a model and its arguments; a target that is given is returned as it is.

    Args:
        model: a Pyro model, or a target.
        args, kwargs: the model's arguments, as `Target.of` takes them.

    Raises:
        TypeError, ValueError: as `Target.of` raises them.
        ValueError: arguments were given beside a target, which has its own.
    """
    if not isinstance(model, Target):
        return Target.of(model, args, kwargs=kwargs)
    if kwargs or not isinstance(args, tuple) or args:
        raise ValueError("args and kwargs go with a model; a target has its own")
    return model
