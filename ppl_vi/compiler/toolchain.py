"""The C++ compiler, with a cache of what it made.

A shared library in the compile cache is one file. Its name is a digest of the source, the compiler, its flags and the
processor, and at its end stands a digest of all before it: a file that is cut short or changed is compiled anew, never
loaded. The digest needs no key, so it tells damage alone: that nobody else could put a library there is for
`inductor.private_folder` to see to. A library is moved into place whole, so that several processes may share the cache.
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
from ppl_vi.runtime.files import is_own, make_private

FLAGS = ("-std=c++17", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-w",
         "-fPIC", "-shared")  # fmt: skip
# A source of more bytes or loops than these, such as that of a recurrence over hundreds of time steps, is compiled with
# fewer optimizations, because several of the compiler's passes take time in proportion to the square of a function's
# length. By measurement on recurrences of 100 and 200 steps (1 MB and 0.2 MB, 2,000 and 270 loops) compiling then takes
# 2 to 6 s instead of 20 to 70 s, and the code takes up to twice as long to run, 4 s instead of 2 s a fit.
MAX_OPTIMIZED_BYTES, MAX_OPTIMIZED_LOOPS = 2**18, 200
TABLE = "static constexpr "  # with which the line of a table begins
COMPILERS = ("g++", "clang++", "c++")
LIBRARIES = "lanes"  # the folder in the compile cache
DIGEST_BYTES = sha256().digest_size


class NoCompilerError(RuntimeError):
    """There is no C++ compiler."""


def compiler() -> str:
    """The path of the C++ compiler: `$CXX` where that is set, else the first of `COMPILERS` that is installed.

    Raises:
        NoCompilerError: there is none.
    """
    names = (os.environ["CXX"],) if os.environ.get("CXX") else COMPILERS
    found = next((path for path in map(shutil.which, names) if path), None)
    if found is None:
        raise NoCompilerError(f"no C++ compiler: looked for {', '.join(names)}")
    return found


def flags(source: str) -> tuple[str, ...]:
    """The compiler's flags for some C++. Tables of numbers are no code, however long they are."""
    length = sum(len(line) for line in source.splitlines() if not line.startswith(TABLE))
    long = length > MAX_OPTIMIZED_BYTES or source.count("for (") > MAX_OPTIMIZED_LOOPS
    return (*FLAGS, "-O1" if long else "-O3")


def library(source: str) -> ctypes.CDLL:
    """The shared library of some C++, compiled or from the compile cache.

    Raises:
        NoCompilerError: there is no C++ compiler.
        RuntimeError: the compiler refuses the source.
    """
    compiler_path = compiler()
    path = _cache_path(compiler_path, source)
    if not _is_intact(path):
        build(compiler_path, source, path)
    return ctypes.CDLL(str(path))


def is_cached(source: str) -> bool:
    """Whether the library of some C++ is in the compile cache."""
    try:
        return _is_intact(_cache_path(compiler(), source))
    except NoCompilerError:
        return False


def _cache_path(compiler_path: str, source: str) -> Path:
    """Where the library of some C++ stands in the compile cache."""
    key = sha256("\n".join([source, compiler_path, *flags(source), processor()]).encode()).hexdigest()
    return inductor.private_folder(LIBRARIES) / f"{key[:32]}.so"


def _is_intact(path: Path) -> bool:
    """Whether a library is there, this user's own, and as it was made."""
    try:
        held = path.read_bytes() if is_own(path) else b""
    except OSError:
        return False
    return len(held) > DIGEST_BYTES and sha256(held[:-DIGEST_BYTES]).digest() == held[-DIGEST_BYTES:]


def build(compiler_path: str, source: str, path: Path) -> None:
    """Compiles `source` to `path`.

    Raises:
        RuntimeError: the compiler refuses the source.
    """
    make_private(path.parent)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        text, made = Path(folder, "step.cpp"), Path(folder, "step.so")
        text.write_text(source)
        done = subprocess.run(
            [compiler_path, *flags(source), str(text), "-o", str(made)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            message = done.stderr.replace(f"{folder}{os.sep}", "")  # which would fill the line
            raise RuntimeError(f"{compiler_path} failed: {' '.join(message.split())[:200]}")
        held = made.read_bytes()
        made.write_bytes(held + sha256(held).digest())
        made.chmod(0o700)
        os.replace(made, path)
