"""Torch's inductor, the one place that touches its internals: a graph of tensor operations to machine code.

Machine code is kept in the user's cache folder, `ppl_vi/inductor` in `$XDG_CACHE_HOME` or `~/.cache` (or where
`$TORCHINDUCTOR_CACHE_DIR` says), so that the same graph is compiled once. Inductor writes there under locks and moves
whole files into place, so several processes may share it.
"""

from __future__ import annotations

import atexit
import getpass
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

KNOWN = ("2.13",)  # versions of torch whose internals have been tried
CACHE = "TORCHINDUCTOR_CACHE_DIR"
_log = logging.getLogger(__name__)


class UnknownTorchError(RuntimeError):
    """The installed torch is one whose internals have not been tried."""


def check_version() -> None:
    """Checks that the installed torch is one that has been tried.

    Raises:
        UnknownTorchError: it is not.
    """
    if not torch.__version__.startswith(tuple(f"{known}." for known in KNOWN)):
        raise UnknownTorchError(f"torch {torch.__version__} has not been tried, only {', '.join(KNOWN)}")


def cache_folder() -> Path:
    """Where machine code is kept."""
    chosen, default = os.environ.get(CACHE), Path(tempfile.gettempdir(), f"torchinductor_{getpass.getuser()}")
    if chosen and Path(chosen) != default:  # torch sets the variable to its own default, which a restart may empty
        return Path(chosen)
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "ppl_vi" / "inductor"


def writable_folder() -> Path:
    """Where machine code is kept, or, where nothing can be written there, a folder that passes with the process."""
    folder = cache_folder()
    return folder if _usable(folder) else _passing_folder()


def compiled(module: GraphModule, example: Sequence[Tensor]) -> Callable[..., Sequence[Tensor]]:
    """A graph as machine code, for inputs like `example`: the same shapes, strides, dtypes and device.

    What is found in the cache folder but can't be used is compiled anew, in a folder that passes with the process.

    Raises:
        UnknownTorchError: see `check_version`.
        Exception: whatever the compiler meets, an absent one among it.
    """
    check_version()
    folder = cache_folder()
    if _usable(folder):
        try:
            return _compiled(module, example, folder)
        except Exception as error:
            _log.info("compiling again, without the cache in %s: %s", folder, error)
    return _compiled(module, example, _passing_folder())


def _compiled(module: GraphModule, example: Sequence[Tensor], folder: Path) -> Callable[..., Sequence[Tensor]]:
    with _cache(folder):
        from torch._guards import TracingContext, tracing
        from torch._inductor import config
        from torch._inductor.compile_fx import compile_fx
        from torch._subclasses import FakeTensorMode
        from torch.fx.experimental.symbolic_shapes import ShapeEnv

        settings: dict[str, Any] = {
            "compile_threads": 1,  # processes of its own would take longer to start than these graphs to compile
            "size_asserts": False,  # the shapes are the engine's
            "cpp.threads": torch.get_num_threads(),
        }
        shapes = ShapeEnv(assume_static_by_default=True)  # without one inductor keeps nothing
        context = TracingContext(FakeTensorMode(shape_env=shapes, allow_non_fake_inputs=True))
        with config.patch(settings), tracing(context), torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="`torch._prims_common.check` is deprecated")  # torch's own
            run: Any = compile_fx(module, list(example))
        run(*example)  # the first call loads what was compiled
    return run


@contextmanager
def _cache(folder: Path) -> Iterator[None]:
    """Lets inductor keep its files in a folder."""
    before = os.environ.get(CACHE)
    os.environ[CACHE] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ[CACHE]
        else:
            os.environ[CACHE] = before


def _usable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


@cache
def _passing_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="ppl_vi_inductor_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
