"""Compiles a graph of tensor operations by torch's inductor. This is the one file that uses inductor's internals.

Machine code goes to the compile cache, so that the same graph is compiled once. The cache is the folder
`ppl_vi/inductor` in `$XDG_CACHE_HOME` or `~/.cache`, or the folder that `$TORCHINDUCTOR_CACHE_DIR` names. Inductor
writes there under locks and moves whole files into place, so several processes may share it. What stands there is
loaded and run, so a folder that another user owns or may write to is not used.
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
from ppl_vi.runtime.caches import is_usable
from ppl_vi.runtime.environment import environment

TRIED_VERSIONS = ("2.13",)  # the versions of torch with which the tests of the compiled engine were seen to pass
KEPT, TORCHS = "kept", "torch"  # the folders in the cache for what `inductor_cache` keeps, and for inductor's own files
CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"  # the environment variable that names the folder of the compile cache
_log = logging.getLogger(__name__)


class UnknownTorchError(RuntimeError):
    """The installed torch is one whose internals have not been tried."""


def check_version() -> None:
    """Checks that the installed torch is one that has been tried.

    Raises:
        UnknownTorchError: it is not.
    """
    if not torch.__version__.startswith(tuple(f"{known}." for known in TRIED_VERSIONS)):
        raise UnknownTorchError(f"torch {torch.__version__} has not been tried, only {', '.join(TRIED_VERSIONS)}")


def cache_folder() -> Path:
    """The folder of the compile cache."""
    chosen, default = os.environ.get(CACHE_VARIABLE), Path(tempfile.gettempdir(), f"torchinductor_{getpass.getuser()}")
    # Torch itself sets the variable to its default, a temporary folder that a restart may empty: that is no choice.
    if chosen and Path(chosen) != default:
        return Path(chosen)
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "ppl_vi" / "inductor"


def private_folder(name: str) -> Path:
    """A folder in the compile cache, to which nobody else may write, since what it holds is run.

    Where it is not so, or can't be written to, it is one that is removed when the process ends.
    """
    folder = cache_folder() / name
    return folder if is_usable(folder) else _temporary_folder() / name


def compiled(module: GraphModule, example: Sequence[Tensor]) -> Callable[..., Sequence[Tensor]]:
    """The machine code of a graph, for inputs like `example`: of the same shapes, strides, dtypes and device.

    Where the compile cache can't be used, it is compiled in a folder that is removed when the process ends.

    Returns:
        A function of the inputs. It raises a `ValueError` for inputs of other dtypes, shapes or devices.

    Raises:
        UnknownTorchError: the installed torch is one whose internals have not been tried.
        Exception: whatever goes wrong in inductor or the C++ compiler, or that there is none.
    """
    check_version()
    module, constants = with_constants_as_inputs(module)
    example = [*constants, *example]
    kept, key = private_folder(KEPT), inductor_cache.key_of(module, example)
    run = inductor_cache.load(kept, key)
    if run is None:
        try:
            run = _compiled(module, example, private_folder(TORCHS), kept, key)
        except Exception as error:
            _log.info("compiling again, without the cache in %s: %s", cache_folder(), error)
            run = _compiled(module, example, _temporary_folder() / TORCHS, _temporary_folder() / KEPT, key)
    expected = [_described(tensor) for tensor in example[len(constants) :]]

    def checked(*args: Tensor) -> Sequence[Tensor]:
        given = [_described(arg) for arg in args]
        if given != expected:
            raise ValueError(f"machine code reads (dtype, shape, device) {expected}; got {given}")
        return run([*constants, *args])

    return checked


def _described(tensor: Tensor) -> tuple[torch.dtype, torch.Size, str]:
    """The dtype, shape and device of an input, which machine code relies on without looking."""
    return tensor.dtype, tensor.shape, tensor.device.type


def is_cached(module: GraphModule, example: Sequence[Tensor]) -> bool:
    """Whether the machine code of a graph is in the compile cache."""
    module, constants = with_constants_as_inputs(module)
    return inductor_cache.is_cached(private_folder(KEPT), inductor_cache.key_of(module, [*constants, *example]))


def with_constants_as_inputs(module: GraphModule) -> tuple[GraphModule, list[Tensor]]:
    """The same graph with the tensors that it holds as its first inputs, and these tensors."""
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


def _compiled(module: GraphModule, example: Sequence[Tensor], folder: Path, kept: Path, key: str) -> inductor_cache.Run:
    """Compiles in a folder, and keeps what later processes can run without inductor in another."""
    with environment({CACHE_VARIABLE: str(folder)}), _quiet():
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
            "compile_threads": 1,  # inductor's worker processes take longer to start than such graphs to compile
            "size_asserts": False,  # `compiled` checks the inputs' shapes itself
            "cpp.threads": torch.get_num_threads(),
            "cpp_cache_precompile_headers": False,  # precompiling takes as long as reading them for five graphs
        }
        shapes = ShapeEnv(assume_static_by_default=True)  # without one inductor caches nothing
        context = TracingContext(FakeTensorMode(shape_env=shapes, allow_non_fake_inputs=True))
        with config.patch(settings), tracing(context), torch.no_grad(), _shortcuts(cpu_vec_isa, common):
            run: Any = compile_fx(module, list(example), inner_compile=inner)
            expected = run(*example)  # the first call loads what was compiled
        if len(made) == 1:
            loaded = next((m for m in codecache.PyCodeCache.modules if m.key == made[0].cache_key), None)
            if loaded and inductor_cache.save(kept, key, made[0].source_code, vars(loaded)):
                again = inductor_cache.load(kept, key)
                if again and _same(again(list(example)), expected):
                    return again
    return lambda args: run(*args)


def _same(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return len(one) == len(other) and all(map(partial(torch.allclose, rtol=0, atol=0, equal_nan=True), one, other))


@contextmanager
def _shortcuts(cpu_vec_isa: Any, common: Any) -> Iterator[None]:
    """Spares inductor work that takes seconds and does not change the code that it generates.

    Inductor would run the C++ compiler to find out which vectors the processor has, which torch knows, and would fill a
    table of dtypes anew for every operation.
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
    """Silences the warnings that torch gives about its own code, also where the user turns warnings into errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@cache
def _temporary_folder() -> Path:
    """A folder that is removed when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="ppl_vi_inductor_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
