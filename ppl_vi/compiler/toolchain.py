"""C++ to machine code, kept in the user's cache folder.

A library is one file, named after its source, its compiler and the processor it is made for, with a digest at its end:
a file that is cut short or changed is never loaded but made again. It is moved into place whole, so several processes
may share the folder.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from hashlib import sha256
from pathlib import Path

from ppl_vi.compiler import inductor
from ppl_vi.compiler.inductor_cache import processor

FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-w",
         "-fPIC", "-shared")  # fmt: skip
COMPILERS = ("g++", "clang++", "c++")
DIGEST = sha256().digest_size


class NoCompilerError(RuntimeError):
    """There is no C++ compiler."""


def compiler() -> str:
    """Path of the C++ compiler: `$CXX` where that is set, else what is found.

    Raises:
        NoCompilerError: there is none.
    """
    names = (os.environ["CXX"],) if os.environ.get("CXX") else COMPILERS
    found = next((path for path in map(shutil.which, names) if path), None)
    if found is None:
        raise NoCompilerError(f"no C++ compiler: looked for {', '.join(names)}")
    return found


def library(source: str) -> ctypes.CDLL:
    """The shared library of some C++.

    Raises:
        NoCompilerError: see `compiler`.
        RuntimeError: it does not compile.
    """
    with_what = compiler()
    path = _place(with_what, source)
    if not _intact(path):
        build(with_what, source, path)
    return ctypes.CDLL(str(path))


def is_cached(source: str) -> bool:
    """Whether the library of some C++ is there already."""
    try:
        return _intact(_place(compiler(), source))
    except NoCompilerError:
        return False


def _place(with_what: str, source: str) -> Path:
    key = sha256("\n".join([source, with_what, *FLAGS, processor()]).encode()).hexdigest()
    return inductor.writable_folder() / "lanes" / f"{key[:32]}.so"


def _intact(path: Path) -> bool:
    try:
        held = path.read_bytes()
    except OSError:
        return False
    return len(held) > DIGEST and sha256(held[:-DIGEST]).digest() == held[-DIGEST:]


def build(with_what: str, source: str, path: Path) -> None:
    """Compiles `source` to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        text, made = Path(folder, "step.cpp"), Path(folder, "step.so")
        text.write_text(source)
        done = subprocess.run(
            [with_what, *FLAGS, str(text), "-o", str(made)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{with_what} failed: {' '.join(done.stderr.split())[:200]}")
        held = made.read_bytes()
        made.write_bytes(held + sha256(held).digest())
        os.replace(made, path)
