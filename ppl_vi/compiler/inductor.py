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
from functools import cache, partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from ppl_vi.compiler import inductor_cache

KNOWN = ("2.13",)  # versions of torch whose internals have been tried
CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
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
    chosen, default = os.environ.get(CACHE_VARIABLE), Path(tempfile.gettempdir(), f"torchinductor_{getpass.getuser()}")
    if chosen and Path(chosen) != default:  # torch sets the variable to its own default, which a restart may empty
        return Path(chosen)
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "ppl_vi" / "inductor"


def writable_folder() -> Path:
    """Where machine code is kept, or, where nothing can be written there, a folder that passes with the process."""
    folder = cache_folder()
    return folder if usable(folder) else _passing_folder()


def compiled(module: GraphModule, example: Sequence[Tensor]) -> Callable[..., Sequence[Tensor]]:
    """A graph as machine code, for inputs like `example`: the same shapes, strides, dtypes and device.

    What is found in the cache folder but can't be used is compiled anew, in a folder that passes with the process.

    Raises:
        UnknownTorchError: see `check_version`.
        Exception: whatever the compiler meets, an absent one among it. What is returned raises a `ValueError` for other
            inputs than those.
    """
    check_version()
    module, constants = with_constants_given(module)
    example = [*constants, *example]
    folder, key = cache_folder(), inductor_cache.key_of(module, example)
    found = inductor_cache.load(folder, key)
    if found is None and usable(folder):
        try:
            found = _compiled(module, example, folder, key)
        except Exception as error:
            _log.info("compiling again, without the cache in %s: %s", folder, error)
    run = found or _compiled(module, example, _passing_folder(), key)
    expected = [_read(tensor) for tensor in example[len(constants) :]]

    def checked(*args: Tensor) -> Sequence[Tensor]:
        given = [_read(arg) for arg in args]
        if given != expected:
            raise ValueError(f"machine code reads (dtype, shape, device) {expected}; got {given}")
        return run([*constants, *args])

    return checked


def _read(tensor: Tensor) -> tuple[torch.dtype, torch.Size, str]:
    """What machine code takes for granted of an input."""
    return tensor.dtype, tensor.shape, tensor.device.type


def is_cached(module: GraphModule, example: Sequence[Tensor]) -> bool:
    """Whether the machine code is there already."""
    module, constants = with_constants_given(module)
    return inductor_cache.is_cached(cache_folder(), inductor_cache.key_of(module, [*constants, *example]))


def with_constants_given(module: GraphModule) -> tuple[GraphModule, list[Tensor]]:
    """The same graph with its own tensors as its first inputs, and these."""
    graph = Graph()
    constants: list[Tensor] = []
    places: dict[Any, Node] = {}
    for node in module.graph.find_nodes(op="get_attr"):
        if node.target not in places:
            places[node.target] = graph.placeholder(f"constant_{len(constants)}")
            constants.append(attrgetter(str(node.target))(module).detach())
    copied: dict[Node, Node] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            copied[node] = places[node.target]
        else:
            copied[node] = graph.node_copy(node, lambda n: copied[n])
    return GraphModule(module, graph), constants


def _compiled(module: GraphModule, example: Sequence[Tensor], folder: Path, key: str) -> inductor_cache.Run:
    """Compiles, and keeps what can be run without inductor."""
    with inductor_cache.environment(CACHE_VARIABLE, str(folder)), _quiet():
        from torch._guards import TracingContext, tracing
        from torch._inductor import codecache, config, cpu_vec_isa
        from torch._inductor.codegen import common
        from torch._inductor.compile_fx import compile_fx, compile_fx_inner
        from torch._subclasses import FakeTensorMode
        from torch.fx.experimental.symbolic_shapes import ShapeEnv

        made: list[Any] = []

        def inner(*args: Any, **kwargs: Any) -> Any:
            made.append(compile_fx_inner(*args, **kwargs))
            return made[-1]

        settings: dict[str, Any] = {
            "compile_threads": 1,  # processes of its own would take longer to start than these graphs to compile
            "size_asserts": False,  # the shapes are the engine's
            "cpp.threads": torch.get_num_threads(),
            "cpp_cache_precompile_headers": False,  # which would take longer than the headers of five graphs
        }
        shapes = ShapeEnv(assume_static_by_default=True)  # without one inductor keeps nothing
        context = TracingContext(FakeTensorMode(shape_env=shapes, allow_non_fake_inputs=True))
        with config.patch(settings), tracing(context), torch.no_grad(), _shortcuts(cpu_vec_isa, common):
            run: Any = compile_fx(module, list(example), inner_compile=inner)
            expected = run(*example)  # the first call loads what was compiled
        if len(made) == 1:
            loaded = next((m for m in codecache.PyCodeCache.modules if m.key == made[0].cache_key), None)
            if loaded and inductor_cache.save(folder, key, made[0].source_code, vars(loaded)):
                again = inductor_cache.load(folder, key)
                if again and _same(again(list(example)), expected):
                    return again
    return lambda args: run(*args)


def _same(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return len(one) == len(other) and all(map(partial(torch.allclose, rtol=0, atol=0, equal_nan=True), one, other))


@contextmanager
def _shortcuts(cpu_vec_isa: Any, common: Any) -> Iterator[None]:
    """Spares inductor what takes it seconds, to the same code.

    These are the compiler runs by which it finds out what torch knows of the processor, and the table of types, which
    it fills anew for every operation.
    """
    known = {"AVX512": cpu_vec_isa.VecAVX512, "AVX2": cpu_vec_isa.VecAVX2}.get(torch.backends.cpu.get_cpu_capability())
    before = cpu_vec_isa.valid_vec_isa_list, common.DtypePropagationOpsHandler
    if known:
        cpu_vec_isa.valid_vec_isa_list = lambda: [known()]
    common.DtypePropagationOpsHandler = cache(before[1])
    try:
        yield
    finally:
        cpu_vec_isa.valid_vec_isa_list, common.DtypePropagationOpsHandler = before


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings of torch's about its own code, whatever the user makes of warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def usable(folder: Path) -> bool:
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
