"""Pickling of results that hold a user's functions: a lambda, a model of a notebook, a closure.

Python's pickle refuses these, and cloudpickle takes them. `Pickled` lets either pickle a result: the object that is
pickled first becomes one text of cloudpickle's, in which objects that are one stay one. `copy.deepcopy` does the same.
As with any pickle, load only what you trust: loading it runs code. Saved fits and comparisons hold no code.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

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
