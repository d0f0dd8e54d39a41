"""Pickling of results that hold a user's functions: a lambda, a model of a notebook, a closure.

Python's pickle refuses these, and cloudpickle takes them. `Pickled` lets either pickle a result: the object that is
pickled first becomes one text of cloudpickle's, in which objects that are one stay one. `copy.deepcopy` does the same.
As with any pickle, load only what you trust: loading it runs code. Saved fits and comparisons hold no code.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any, ClassVar
from uuid import uuid4
from weakref import WeakValueDictionary

import cloudpickle

_inside: ContextVar[bool] = ContextVar("inside", default=False)


class Pickled:
    """A result that pickle can take whatever functions it holds."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        if _inside.get():
            return super().__reduce_ex__(protocol)
        token = _inside.set(True)
        try:
            return cloudpickle.loads, (cloudpickle.dumps(self),)
        finally:
            _inside.reset(token)


class PickledAsOne:
    """A frozen object that stays one where it is pickled in several parts, as the target of a fit and of its truth.

    Each keeps a token. Who reads a part in a process where an object of its token is alive gets that object. So a copy
    within a process, as by `copy.deepcopy`, is the object itself.

    Attributes:
        local: names of what is computed when it is first asked for, in each process for itself.
    """

    local: ClassVar[tuple[str, ...]] = ()

    def __reduce_ex__(self, protocol: Any) -> Any:
        token = self.__dict__.setdefault("_token", uuid4().hex)
        _alive[token] = self
        return _of_token, (token, type(self)), {k: v for k, v in self.__dict__.items() if k not in self.local}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if not self.__dict__:  # else it is here already
            self.__dict__.update(state)


_alive: WeakValueDictionary[str, PickledAsOne] = WeakValueDictionary()


def _of_token(token: str, kind: type[PickledAsOne]) -> PickledAsOne:
    """The object of a token, or a blank one that is still to get its state."""
    found = _alive.get(token)
    if found is None:
        found = _alive[token] = object.__new__(kind)
    return found
