"""The lower limit of a step's time: the steps of the toy written by hand in `fused_toy.cpp`, for `benchmarks.speed`."""

from __future__ import annotations

import ctypes
import math
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.speed_case import Case, MissingError
from benchmarks.speed_problems import FORMS, OBSERVATION, initial, rates
from ppl_vi.svi.engines.adam import BETA1, BETA2, EPS

SOURCE = Path(__file__).with_name("fused_toy.cpp")
FLAGS = ["-std=c++17", "-O3", "-march=native", "-ffast-math"]
# The words of random bits that the loop's generators hold for each dtype.
WORDS: dict[str, type[np.unsignedinteger[Any]]] = {"float32": np.uint32, "float64": np.uint64}


@cache
def library() -> ctypes.CDLL:
    """The compiled loop.

    Raises:
        MissingError: there is no compiler, or no ninja.
    """
    for tool in ("c++", "ninja"):
        if shutil.which(tool) is None:
            raise MissingError(f"not installed: {tool}")
    from torch.utils import cpp_extension

    name = "ppl_vi_fused_toy"
    cpp_extension.load(name, [str(SOURCE)], extra_cflags=FLAGS, is_python_module=False)
    folder = Path(cpp_extension._get_build_directory(name, verbose=False))
    return ctypes.CDLL(str(folder / f"{name}.so"))


class FloorLoop:
    """Groups of fits through all their steps, one group after another."""

    def __init__(self, case: Case) -> None:
        if (case.problem, case.guide, case.num_particles) != ("toy", "lognormal", 1):
            raise MissingError("written by hand for the toy's lognormal guide and one particle alone")
        found = library()
        self._advance, lanes = getattr(found, f"advance_{case.dtype}"), found.lanes()
        self._replicas, self._done = case.replicas, 0
        num_groups = math.ceil(case.replicas / lanes)
        start = initial(FORMS["lognormal"], torch.float64)
        self._state = np.zeros((num_groups, 6, lanes), case.dtype)
        self._state[:, 0], self._state[:, 1] = float(start["loc"]), float(start["scale"].log())
        words = WORDS[case.dtype]
        shape = (num_groups, 4, lanes)
        self._generators = np.random.default_rng(0).integers(np.iinfo(words).max, size=shape, dtype=words)

    def advance(self, num_steps: int) -> None:
        """As in `Loop`."""
        t = np.arange(self._done + 1, self._done + num_steps + 1)
        correction = np.sqrt(-np.expm1(t * math.log(BETA2)))  # of 1 - beta^t, several times as fast as the power
        size = rates(self._done, num_steps) * correction / -np.expm1(t * math.log(BETA1))
        pairs = np.stack([size, (EPS * correction) ** 2], 1).astype(self._state.dtype)
        pointers = [array.ctypes.data_as(ctypes.c_void_p) for array in (self._state, self._generators, pairs)]
        num_groups = ctypes.c_int64(len(self._state))
        self._advance(*pointers, num_groups, ctypes.c_int64(num_steps), ctypes.c_double(OBSERVATION))
        self._done += num_steps

    def parameters(self) -> dict[str, Tensor]:
        """As in `Loop`."""
        loc, rho = (torch.from_numpy(self._state[:, i].reshape(-1)[: self._replicas].copy()) for i in (0, 1))
        return {"loc": loc, "scale": rho.exp()}


def floor_loop(case: Case) -> FloorLoop:
    """The fused loop."""
    return FloorLoop(case)
