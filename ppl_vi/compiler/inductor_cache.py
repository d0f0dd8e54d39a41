"""Inductor's machine code, kept so that a later process runs it without inductor, whose import takes over a second.

A record is a folder, named after the graph and all that shaped its code: inductor's own Python, which allocates and
calls, and the libraries that it calls, with their digests. It is moved into place whole, so that several processes may
share the cache; what is damaged is not used.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from hashlib import sha256
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

ADDRESS = "_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR"
CODE, DIGESTS = "code.py", "digests.json"
MULTIPLICATIONS = {name: getattr(torch, name) for name in ("mm", "bmm", "addmm", "baddbmm")}
KERNEL = re.compile(r"^(\w+) = async_compile\.(\w+)\(", re.MULTILINE)
BORROWED = re.compile(r"extern_kernels\.(\w+)")
IMPORTED = re.compile(r"^from torch\._inductor\b.*$", re.MULTILINE)

Run = Callable[[list[Tensor]], Sequence[Tensor]]


@cache
def processor() -> str:
    """What the processor can do, in its own words."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())


def key_of(module: GraphModule, example: Sequence[Tensor]) -> str:
    """What tells a graph's machine code from any other's."""
    shapes = [(tuple(t.shape), t.stride(), str(t.dtype), str(t.device)) for t in example]
    where = (torch.__version__, platform.python_version(), processor(), torch.get_num_threads())
    return sha256(repr((module.code, shapes, where)).encode()).hexdigest()[:32]


def is_cached(folder: Path, key: str) -> bool:
    """Whether there is a record."""
    return (folder / "kept" / key / DIGESTS).is_file()


def load(folder: Path, key: str) -> Run | None:
    """The function of a record: it takes all inputs as one list and empties it. None where it can't be used."""
    record = folder / "kept" / key
    try:
        digests = json.loads((record / DIGESTS).read_text())
        if any(sha256((record / name).read_bytes()).hexdigest() != digest for name, digest in digests.items()):
            return None
        return _executed(record)
    except Exception:  # a damaged record may be anything
        return None


def _executed(record: Path) -> Run:
    """Inductor's Python, run with stand-ins for what it imports of inductor's."""
    libraries = _Libraries(record)
    namespace: dict[str, Any] = {
        "AsyncCompile": lambda: libraries,
        "extern_kernels": SimpleNamespace(**MULTIPLICATIONS),
        "__name__": f"ppl_vi_kept_{record.name}",
    }
    source = IMPORTED.sub("", (record / CODE).read_text())
    exec(compile(source, str(record / CODE), "exec"), namespace)
    return namespace["call"]


@contextmanager
def environment(name: str, value: str) -> Iterator[None]:
    """Sets a variable of the environment for a while."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


class _Libraries:
    """Stands in for inductor's `async_compile`: hands out kept libraries in the order of their making."""

    def __init__(self, record: Path) -> None:
        self.record, self.number = record, 0

    def cpp_pybinding(self, *_: Any, **__: Any) -> Callable[..., Any]:
        path = self.record / f"{self.number}.so"
        self.number += 1
        loader = ExtensionFileLoader("kernel", str(path))  # the name that inductor gives each
        spec = importlib.util.spec_from_file_location("kernel", path, loader=loader)
        assert spec is not None
        guards: Any = torch._C._dynamo.guards
        # where torch's function is that finds a tensor's memory
        with environment(ADDRESS, str(guards._torchinductor_pyobject_tensor_data_ptr)):
            module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
        return module.kernel

    def wait(self, _: Any) -> None:
        pass


def save(folder: Path, key: str, source: str, namespace: dict[str, Any]) -> bool:
    """Keeps inductor's Python with the libraries of its kernels; False where it needs more than `load` can give it.

    Raises:
        OSError: it can't be written.
    """
    kernels = KERNEL.findall(source)
    if any(kind != "cpp_pybinding" for _, kind in kernels) or not set(BORROWED.findall(source)) <= set(MULTIPLICATIONS):
        return False
    (folder / "kept").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder / "kept") as passing:
        record = Path(passing, key)
        record.mkdir()
        (record / CODE).write_text(source)
        for number, (name, _) in enumerate(kernels):
            shutil.copyfile(namespace[name].__self__.__file__, record / f"{number}.so")
        digests = {path.name: sha256(path.read_bytes()).hexdigest() for path in record.iterdir()}
        (record / DIGESTS).write_text(json.dumps(digests))
        place = folder / "kept" / key
        if place.exists():  # damaged, or another process was faster
            os.replace(place, Path(passing, "before"))
        os.replace(record, place)
    return True
