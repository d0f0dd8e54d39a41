"""What a fit is known by: digests of all that determines its numbers.

The digest of a model or a guide is taken of its code, as Python runs it, and of whatever that code refers to: functions
that it calls, default values, variables of its module, data. Comments and docstrings do not count. Of installed
libraries only the names count, since the versions of those that matter are part of every key. For what no digest of the
code can see, the log density at a few points is part of a model's digest, too.
"""

from __future__ import annotations

import functools
import hashlib
import json
import site
import sys
import sysconfig
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_vi.runtime.provenance import versions
from ppl_vi.target.fingerprint import fingerprint
from ppl_vi.target.target import Target

# Raise it whenever a task's numbers are made in another way: the fits of an earlier revision are then computed again.
REVISION = 1
# The log density is part of a model's digest for so many problems, at so many points each.
NUM_PROBED_PROBLEMS, NUM_PROBES = 4, 3
# Parts of this package on which no number depends.
WITHOUT_NUMBERS = (
    "report",
    "sweeps",
    "cli",
    "commands",
    "__main__.py",
    "launch.py",
    "model_comparison.py",
    "testing.py",
)
PLAIN = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis))
LIBRARIES = tuple(
    {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")} | {site.getusersitepackages()}
)
OWN_FOLDER = str(Path(__file__).resolve().parents[1])


def key_of(*parts: Any) -> str:
    """A digest of plain values, as 32 hexadecimal digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def code_digest(value: Any) -> str:
    """A digest of a function or any object, with the code and data that it refers to."""
    walk = _Walk(_package(value))
    walk.feed(value)
    return walk.digest.hexdigest()[:32]


def model_key(target: Target) -> str:
    """The key of a model with its data."""
    return key_of(REVISION, fingerprint(target), str(target.dtype), source_digest(target), list(_probes(target)))


def source_digest(target: Target) -> str:
    """The digest of a target's model, and of what else it was given."""
    return code_digest((target.model, target.closed_form, target.decoded, target.conditional))


def guide_key(family: Any) -> str:
    """The key of a family: its name, where it is one of this package or of Pyro, else a digest of the user's code."""
    return key_of(family) if isinstance(family, str) else key_of(REVISION, code_digest(family))


def all_versions() -> dict[str, str]:
    """The versions on which numbers depend; of this package a digest of its files, which also tells checkouts apart."""
    return versions("arviz-stats", "zuko") | {"ppl_vi source": _own_source()}


@functools.cache
def _own_source() -> str:
    digest, root = hashlib.sha256(), Path(OWN_FOLDER)
    for path in sorted((*root.rglob("*.py"), *root.rglob("*.h"))):
        place = path.relative_to(root)
        if place.parts[0] not in WITHOUT_NUMBERS:
            digest.update(place.as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _probes(target: Target) -> Iterator[str]:
    """The log density of the first problems at a few points, to 8 digits, which other processors give, too."""
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(NUM_PROBES, target.dim, generator=generator, dtype=target.dtype).to(target.device)
    with target.isolated(seed=0), torch.no_grad():
        for problem in range(min(NUM_PROBED_PROBLEMS, target.num_problems)):
            for point in points if target.dim else ():
                yield f"{float(target.log_density_of_row(point, *target.row(problem))):.8g}"


class _Walk:
    """Feeds a digest with an object and all that it refers to, each object once."""

    def __init__(self, package: str) -> None:
        self.digest = hashlib.sha256()
        self._package = package  # the user's own, also where it is installed among the libraries
        self._seen: dict[int, int] = {}
        self._held: list[Any] = []  # keeps what was seen alive, so that no other object gets its id

    def feed(self, value: Any) -> None:
        """Takes in a value."""
        if isinstance(value, PLAIN):
            return self._tell(type(value).__name__, repr(value))
        if id(value) in self._seen:
            return self._tell("seen", str(self._seen[id(value)]))
        self._seen[id(value)] = len(self._seen)
        self._held.append(value)
        return self._feed_new(value)

    def _tell(self, *texts: str) -> None:
        for text in texts:
            self.digest.update(text.encode() + b"\0")

    def _feed_new(self, value: Any) -> None:
        feeds: tuple[tuple[Any, Callable[[Any], None]], ...] = (
            (types.CodeType, self._code),
            ((tuple, list), self._sequence),
            ((set, frozenset), lambda some: self._tell("set", *sorted(map(self._alone, some)))),
            (dict, self._dict),
            (Tensor, lambda tensor: self._array(tensor.detach().cpu().numpy())),
            ((np.ndarray, np.generic), self._array),
            (types.FunctionType, self._function),
            (types.MethodType, lambda method: self._sequence((method.__func__, method.__self__))),
            (functools.partial, lambda some: self._sequence((some.func, some.args, some.keywords))),
            ((types.ModuleType, types.BuiltinFunctionType), self._name),
            (type, self._class),
            (property, lambda some: self._sequence((some.fget, some.fset))),
            ((classmethod, staticmethod), lambda some: self.feed(some.__func__)),
        )
        for kind, feed in feeds:
            if isinstance(value, kind):
                return feed(value)
        return self._object(value)

    def _alone(self, value: Any) -> str:
        walk = _Walk(self._package)
        walk.feed(value)
        return walk.digest.hexdigest()

    def _sequence(self, values: Any) -> None:
        self._tell("sequence", str(len(values)))
        for value in values:
            self.feed(value)

    def _dict(self, values: dict[Any, Any]) -> None:
        self._tell("dict", str(len(values)))
        for key in sorted(values, key=self._alone):
            self.feed(key)
            self.feed(values[key])

    def _array(self, array: Any) -> None:
        array = np.asarray(array)
        self._tell("array", str(array.shape), str(array.dtype))
        self.digest.update(np.ascontiguousarray(array).tobytes() if array.dtype != object else repr(array).encode())

    def _name(self, value: Any) -> None:
        self._tell("name", str(getattr(value, "__module__", "")), str(getattr(value, "__qualname__", value.__name__)))

    def _function(self, function: types.FunctionType) -> None:
        if not self._is_users(function):
            return self._name(function)
        self._code(function.__code__, function.__doc__)
        self._sequence((function.__defaults__, function.__kwdefaults__))
        for cell in function.__closure__ or ():
            with_value = cell.cell_contents if cell != types.CellType() else None
            self.feed(with_value)
        self._globals(function)
        return None

    def _globals(self, function: types.FunctionType) -> None:
        """What the code of a function finds in its module, and in modules of the user that it names."""
        names = sorted(_names(function.__code__))
        for name in names:
            if name not in function.__globals__:
                continue
            found = function.__globals__[name]
            self._tell("global", name)
            self.feed(found)
            if isinstance(found, types.ModuleType) and self._is_users(found):
                for attribute in names:
                    if attribute in vars(found):
                        self._tell("attribute", attribute)
                        self.feed(vars(found)[attribute])

    def _code(self, code: types.CodeType, doc: str | None = None) -> None:
        constants = code.co_consts
        if doc is not None and constants and constants[0] == doc:
            constants = constants[1:]
        self._tell("code", code.co_code.hex(), repr(code.co_names), repr(code.co_varnames), repr(code.co_freevars))
        self._tell(str(code.co_flags), str(code.co_argcount), str(code.co_kwonlyargcount), code.co_exceptiontable.hex())
        self._tell("constants", str(len(constants)))
        for constant in constants:
            self.feed(constant)

    def _class(self, value: type) -> None:
        self._name(value)
        if self._is_users(value):
            self._sequence(value.__bases__)
            own = {name: part for name, part in vars(value).items() if not name.startswith("__") or callable(part)}
            self._dict({name: part for name, part in own.items() if not isinstance(part, types.GetSetDescriptorType)})

    def _object(self, value: Any) -> None:
        self.feed(type(value))
        held = getattr(value, "__dict__", None)
        if isinstance(held, dict):
            self._dict({name: part for name, part in held.items() if isinstance(name, str)})

    def _is_users(self, value: Any) -> bool:
        """Whether something is of the user, and not of Python, an installed library, or this package."""
        name = value.__name__ if isinstance(value, types.ModuleType) else str(getattr(value, "__module__", None) or "")
        if self._package and name.partition(".")[0] == self._package:
            return True
        module = sys.modules.get(name)
        file = getattr(module, "__file__", None) or ""
        if not file:
            return name in ("__main__", "") or module is None
        return not file.startswith((*LIBRARIES, OWN_FOLDER))


def is_users_module(module: types.ModuleType) -> bool:
    """Whether a module is a user's, of Python code, and not of an installed library or this package."""
    file = getattr(module, "__file__", None) or ""
    return file.endswith(".py") and not file.startswith((*LIBRARIES, OWN_FOLDER))


def _names(code: types.CodeType) -> set[str]:
    """The names of globals and attributes in a piece of code, and in those inside it."""
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return set(code.co_names).union(*map(_names, inner))


def _package(value: Any) -> str:
    """The package of a function; "" where that is this package, or there is none."""
    name = str(getattr(value, "__module__", None) or "").partition(".")[0]
    return "" if name in ("ppl_vi", "builtins", "__main__", "torch", "pyro") else name
