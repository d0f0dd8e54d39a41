"""The compile cache of inductor's machine code.

From it a later process runs a compiled graph without inductor, whose import alone takes more than a second. An entry is
a folder. Its name is a digest of the graph and of all that its machine code depends on. In it are the Python code that
inductor generated, which allocates memory and calls kernels, the shared libraries of these kernels, and the digests of
both. An entry is moved into place whole, so that several processes may share the cache; a damaged one is not used, nor
one that another user owns or may write to.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from hashlib import sha256
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from ppl_vi.runtime.environment import environment
from ppl_vi.runtime.files import is_own, make_private

CODE_FILE, DIGESTS_FILE = "code.py", "digests.json"  # the files of an entry, beside its libraries
# The variable of the environment in which inductor's libraries find, when they are loaded, the address of torch's
# function that gives a tensor's memory.
ADDRESS_VARIABLE = "_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR"
# The operations of torch itself that an entry's code may call; code that calls others is not cached.
EXTERN_KERNELS = {name: getattr(torch, name) for name in ("mm", "bmm", "addmm", "baddbmm")}
# Lines of inductor's code: a kernel's definition, a call of one of torch's operations, an import.
KERNEL_LINE = re.compile(r"^(\w+) = async_compile\.(\w+)\(", re.MULTILINE)
EXTERN_CALL = re.compile(r"extern_kernels\.(\w+)")
IMPORT_LINE = re.compile(r"^from torch\._inductor\b.*$", re.MULTILINE)

Run = Callable[[list[Tensor]], Sequence[Tensor]]


@cache
def processor() -> str:
    """The processor's features as the operating system lists them, for which machine code is made."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())


def key_of(module: GraphModule, example: Sequence[Tensor]) -> str:
    """The name of a graph's entry: a digest of the graph, its inputs' shapes, torch, Python, processor and threads."""
    shapes = [(tuple(t.shape), t.stride(), str(t.dtype), str(t.device)) for t in example]
    where = (torch.__version__, platform.python_version(), processor(), torch.get_num_threads())
    return sha256(repr((module.code, shapes, where)).encode()).hexdigest()[:32]


def is_cached(folder: Path, key: str) -> bool:
    """Whether there is an entry."""
    return (folder / key / DIGESTS_FILE).is_file()


def load(folder: Path, key: str) -> Run | None:
    """An entry's function, which takes all inputs as one list and empties it; None where there is no usable entry."""
    entry = folder / key
    try:
        digests = json.loads((entry / DIGESTS_FILE).read_text())
        found = [entry, *entry.iterdir()]
        if {path.name for path in found[1:]} != {DIGESTS_FILE, *digests} or not all(map(is_own, found)):
            return None
        if any(sha256((entry / name).read_bytes()).hexdigest() != digest for name, digest in digests.items()):
            return None
        return _executed(entry)
    except Exception:  # a damaged entry may raise anything
        return None


def _executed(entry: Path) -> Run:
    """Runs inductor's Python code, with substitutes for what it imports from inductor, and gives its function."""
    libraries = _Libraries(entry)
    namespace: dict[str, Any] = {
        "AsyncCompile": lambda: libraries,
        "extern_kernels": SimpleNamespace(**EXTERN_KERNELS),
        "__name__": f"ppl_vi_kept_{entry.name}",
    }
    source = IMPORT_LINE.sub("", (entry / CODE_FILE).read_text())
    exec(compile(source, str(entry / CODE_FILE), "exec"), namespace)
    return namespace["call"]


class _Libraries:
    """Takes the place of inductor's `async_compile`: gives the kernels of an entry's libraries, in the code's order."""

    def __init__(self, entry: Path) -> None:
        self.entry, self.number = entry, 0

    def cpp_pybinding(self, *_: Any, **__: Any) -> Callable[..., Any]:
        path = self.entry / f"{self.number}.so"
        self.number += 1
        loader = ExtensionFileLoader("kernel", str(path))  # the name that inductor gives each
        spec = importlib.util.spec_from_file_location("kernel", path, loader=loader)
        assert spec is not None
        guards: Any = torch._C._dynamo.guards
        with environment({ADDRESS_VARIABLE: str(guards._torchinductor_pyobject_tensor_data_ptr)}):
            module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
        return module.kernel

    def wait(self, _: Any) -> None:
        pass


def save(folder: Path, key: str, source: str, namespace: dict[str, Any]) -> bool:
    """Writes an entry.

    Args:
        folder: of all entries.
        key: of the entry.
        source: the Python code that inductor generated.
        namespace: what it defines, the kernels among it.

    Returns:
        Whether it was written: not where the code needs more than `load` can give it.

    Raises:
        OSError: the entry can't be written.
    """
    kernels = KERNEL_LINE.findall(source)
    calls = set(EXTERN_CALL.findall(source))
    if any(kind != "cpp_pybinding" for _, kind in kernels) or not calls <= set(EXTERN_KERNELS):
        return False
    make_private(folder)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        entry = Path(temporary, key)
        entry.mkdir(mode=0o700)
        (entry / CODE_FILE).write_text(source)
        for number, (name, _) in enumerate(kernels):
            shutil.copyfile(namespace[name].__self__.__file__, entry / f"{number}.so")
        digests = {path.name: sha256(path.read_bytes()).hexdigest() for path in entry.iterdir()}
        (entry / DIGESTS_FILE).write_text(json.dumps(digests))
        for path in entry.iterdir():
            path.chmod(0o600)  # whatever the umask: `load` takes only what nobody else may write to
        place = folder / key
        if place.exists():  # a damaged one, or that of a process that was faster
            os.replace(place, Path(temporary, "before"))
        os.replace(entry, place)
    return True
