"""Kernels against a plain loop of torch over problems, lanes and steps."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from ppl_vi.compiler import toolchain
from ppl_vi.compiler.kernel import MAX_FRAME_BYTES_ON_ANY_STACK, Kernel, kernel_source
from ppl_vi.compiler.values import UnsupportedError
from ppl_vi.compiler.vectors import lanes_per_vector

pytestmark = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")

REAL = torch.float64
Arguments = dict[str, Any]


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("kernels")))
        yield


def walk(s: Tensor, x: Tensor, alive: Tensor, scale: Tensor, data: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
    """A walk that ends for good where its sum is large; gives back how far it is and whether it went on."""
    moved = x + s * scale * (noise + data.sin().mT @ x)
    goes_on = alive & (moved.sum() < 2.0)
    return torch.where(goes_on, moved, x), goes_on, (x * data[0]).sum(), goes_on


SHAPES = {"carried": [(3,), ()], "fixed": [(3,)], "data": [(3, 3)], "noise": [(3,)]}


def walk_arguments(num_steps: int, num_problems: int, num_lanes: int, dtype: torch.dtype = REAL) -> Arguments:
    generator = torch.Generator().manual_seed(num_lanes)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype)

    alive = torch.arange(num_problems * num_lanes).reshape(num_problems, num_lanes) % 3 != 1
    return {
        "scalars": draw(1, num_steps).abs(),
        "carried": [draw(num_problems, num_lanes, 3), alive],
        "fixed": [draw(num_problems, num_lanes, 3)],
        "data": [draw(num_problems, 3, 3)],
        "noise": [draw(num_steps, num_problems, num_lanes, 3)],
    }


def compiled(step: Callable[..., Any], arguments: Arguments) -> Kernel:
    """The kernel of a step for arguments like these."""
    scalars = arguments.get("scalars")
    examples = {
        "carried": [tensor[0, 0] for tensor in arguments.get("carried", [])],
        "fixed": [tensor[0, 0] for tensor in arguments.get("fixed", [])],
        "data": [tensor[0] for tensor in arguments.get("data", [])],
        "noise": [tensor[0, 0, 0] for tensor in arguments.get("noise", [])],
    }
    num_scalars = 0 if scalars is None else len(scalars)
    return kernel_source(step, arguments["carried"][0].shape[1], num_scalars=num_scalars, **examples).compile()


def looped(step: Callable[..., Any], arguments: Arguments) -> tuple[list[Tensor], list[Tensor]]:
    """What a kernel computes, one problem, one lane and one step after another."""
    carried, scalars = arguments["carried"], arguments.get("scalars", torch.zeros(0, 1))
    num_problems, num_lanes = carried[0].shape[:2]
    ends, results = [], []
    for b in range(num_problems):
        for r in range(num_lanes):
            state: Sequence[Tensor] = [tensor[b, r] for tensor in carried]
            fixed = [tensor[b, r] for tensor in arguments.get("fixed", [])]
            data = [tensor[b] for tensor in arguments.get("data", [])]
            for t in range(scalars.shape[1]):
                noise = [tensor[t, b, r] for tensor in arguments.get("noise", [])]
                out = step(*scalars[:, t], *state, *fixed, *data, *noise)
                state = out[: len(carried)]
                results.append(out[len(carried) :])
            ends.append(state)
    by_lane = [torch.stack(parts).unflatten(0, (num_problems, num_lanes)) for parts in zip(*ends, strict=True)]
    by_step = [
        torch.stack(parts).unflatten(0, (num_problems, num_lanes, scalars.shape[1])).movedim(2, 0)
        for parts in zip(*results, strict=True)
    ]
    return by_lane, by_step


def compare(found: tuple[list[Tensor], list[Tensor]], expected: tuple[list[Tensor], list[Tensor]], rtol: float) -> None:
    for got, want in zip((*found[0], *found[1]), (*expected[0], *expected[1]), strict=True):
        torch.testing.assert_close(got, want.to(got.dtype), rtol=rtol, atol=rtol)


@pytest.mark.parametrize(("num_lanes", "dtype"), [(1, REAL), (5, REAL), (8, REAL), (21, REAL), (37, torch.float32)])
def test_steps_are_those_of_a_loop(num_lanes: int, dtype: torch.dtype) -> None:
    """Fewer lanes than a vector has, a full vector, and several of which the last overlaps the one before."""
    arguments = walk_arguments(4, 3, num_lanes, dtype)
    found = compiled(walk, arguments)((3, num_lanes), **arguments)
    expected = looped(walk, arguments)
    compare(found, expected, 1e4 * torch.finfo(dtype).eps)  # some hundred roundings, each of a few places
    assert found[0][1].dtype == torch.bool
    if num_lanes > 8:
        assert {True, False} == set(found[0][1].flatten().tolist())


def test_taking_steps_in_two_calls_is_taking_them_in_one() -> None:
    arguments = walk_arguments(6, 2, 13)
    kernel = compiled(walk, arguments)
    whole = kernel((2, 13), **arguments)
    parts = []
    carried = arguments["carried"]
    for few in (slice(0, 2), slice(2, 6)):
        some = arguments | {"scalars": arguments["scalars"][:, few], "noise": [arguments["noise"][0][few]]}
        carried, results = kernel((2, 13), **some | {"carried": carried})
        parts.append(results)
    for got, want in zip(carried, whole[0], strict=True):
        assert torch.equal(got, want)
    for *pieces, want in zip(*parts, whole[1], strict=True):
        assert torch.equal(torch.cat(pieces), want)


def test_no_steps_leave_all_as_it_is() -> None:
    arguments = walk_arguments(0, 2, 9)
    carried, results = compiled(walk, walk_arguments(1, 2, 9))((2, 9), **arguments)
    assert all(torch.equal(got, want) for got, want in zip(carried, arguments["carried"], strict=True))
    assert [tuple(result.shape) for result in results] == [(0, 2, 9), (0, 2, 9)]


def test_a_kernel_leaves_its_arguments_as_they_were() -> None:
    arguments = walk_arguments(3, 2, 9)
    before = {role: [tensor.clone() for tensor in tensors] for role, tensors in arguments.items()}
    compiled(walk, arguments)((2, 9), **arguments)
    for role, tensors in arguments.items():
        assert all(torch.equal(got, want) for got, want in zip(tensors, before[role], strict=True))


SWAPS: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    "swapped": lambda a, b: (b, a, a[0]),
    "turned": lambda a, b: (a.flip(0), b, a[0]),
    "shifted": lambda a, b: (torch.cat([b[:1], a[:-1]]), torch.cat([a[-1:], b[:-1]]), b.sum()),
    "copied": lambda a, b: (a, a, b.sum()),
    "used after it changed": lambda a, b: (a + 1, b * a, a.sum()),
}


@pytest.mark.parametrize("name", list(SWAPS))
def test_carried_tensors_may_take_each_others_places(name: str) -> None:
    carried = [torch.arange(2 * 9 * 4, dtype=REAL).reshape(2, 9, 4) + shift for shift in (0.25, 100.5)]
    arguments = {"scalars": torch.zeros((0, 3), dtype=REAL), "carried": carried}
    found = compiled(SWAPS[name], arguments)((2, 9), **arguments)
    compare(found, looped(SWAPS[name], arguments), 1e-14)


def test_conditions_may_take_each_others_places() -> None:
    def step(x: Tensor, one: Tensor, other: Tensor) -> tuple[Tensor, ...]:
        return x - 1, other, one & (x > 0), one.to(x.dtype).sum() + other[0]

    generator = torch.Generator().manual_seed(1)
    conditions = [torch.rand((2, 9, 3), generator=generator) > 0.4 for _ in range(2)]
    x = torch.randn((2, 9, 1), generator=generator, dtype=REAL) + 1
    arguments = {"scalars": torch.zeros((0, 3), dtype=REAL), "carried": [x, *conditions]}
    found = compiled(step, arguments)((2, 9), **arguments)
    expected = looped(step, arguments)
    compare(found, expected, 1e-14)
    assert not torch.equal(expected[0][1], conditions[0])


def test_a_fixed_condition_chooses() -> None:
    def step(x: Tensor, which: Tensor) -> tuple[Tensor, ...]:
        return (torch.where(which, x.exp(), -x),)

    x = torch.randn((1, 11, 3), generator=torch.Generator().manual_seed(2), dtype=REAL)
    arguments = {"carried": [x], "fixed": [x > 0.3]}
    (got,), _ = compiled(step, arguments)((1, 11), **arguments)
    torch.testing.assert_close(got, torch.where(x > 0.3, x.exp(), -x), rtol=1e-14, atol=0.0)


def test_constants_may_be_carried_and_given_back() -> None:
    def step(x: Tensor, is_first: Tensor) -> tuple[Tensor, ...]:
        return torch.full_like(x, 2.5), torch.zeros_like(is_first), x.sum(), torch.tensor([1.5, -2.0], dtype=REAL)

    x = torch.randn((2, 9, 3), generator=torch.Generator().manual_seed(3), dtype=REAL)
    arguments = {"scalars": torch.zeros((0, 2), dtype=REAL), "carried": [x, torch.ones((2, 9), dtype=torch.bool)]}
    found = compiled(step, arguments)((2, 9), **arguments)
    compare(found, looped(step, arguments), 1e-14)


def test_memory_may_lie_in_any_order() -> None:
    arguments = walk_arguments(2, 2, 9)
    kernel = compiled(walk, arguments)
    expected = kernel((2, 9), **arguments)
    turned = arguments | {
        "carried": [arguments["carried"][0].mT.contiguous().mT, arguments["carried"][1].mT.contiguous().mT],
        "fixed": [arguments["fixed"][0].transpose(0, 1).contiguous().transpose(0, 1)],
        "data": [arguments["data"][0].mT.contiguous().mT],
        "scalars": arguments["scalars"].repeat_interleave(2, 1)[:, ::2],
    }
    assert not turned["data"][0].is_contiguous()
    found = kernel((2, 9), **turned)
    for got, want in zip((*found[0], *found[1]), (*expected[0], *expected[1]), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize(
    ("role", "change"),
    [
        ("scalars", lambda scalars: scalars[:0]),
        ("scalars", lambda scalars: scalars.float()),
        ("carried", lambda carried: [carried[0][..., :2], carried[1]]),
        ("carried", lambda carried: [carried[0], carried[1].to(REAL)]),
        ("carried", lambda carried: carried[:1]),
        ("fixed", lambda fixed: [fixed[0].float()]),
        ("fixed", lambda fixed: [fixed[0][:1]]),
        ("data", lambda data: [data[0][..., 0]]),
        ("noise", lambda noise: [noise[0][:-1]]),
        ("noise", lambda noise: [noise[0].to("meta")]),
    ],
)
def test_other_tensors_are_refused(role: str, change: Callable[[Any], Any]) -> None:
    arguments = walk_arguments(3, 2, 9)
    kernel = compiled(walk, arguments)
    with pytest.raises(ValueError, match=rf"^machine code reads {role}.* of \(dtype, shape, device\) .*; got "):
        kernel((2, 9), **arguments | {role: change(arguments[role])})


@pytest.mark.parametrize(
    ("compiled_for", "num_lanes", "served"),
    [(5, 4, False), (5, 6, True), (5, 8, True), (5, 13, True), (8, 7, False), (8, 12, True), (3, 4, True), (4, 6, True),
     (1, 9, True), (100, 7, False), (100, 8, True), (100, 3, False), (100, 0, False)],
)  # fmt: skip
def test_a_kernel_serves_as_many_lanes_as_compiled_for_or_more(compiled_for: int, num_lanes: int, served: bool) -> None:
    def doubled(x: Tensor) -> tuple[Tensor, ...]:
        return (2 * x,)

    kernel = kernel_source(doubled, compiled_for, carried=[torch.zeros(2, dtype=REAL)]).compile()
    x = torch.randn((3, num_lanes, 2), dtype=REAL)
    if served:
        (got,), _ = kernel((3, num_lanes), carried=[x])
        assert torch.equal(got, 2 * x)
    else:
        with pytest.raises(ValueError, match=rf"this kernel serves .* lanes.*, got {num_lanes}: compile one for them"):
            kernel((3, num_lanes), carried=[x])


@pytest.mark.parametrize(
    ("dtype", "num_lanes", "expected"),
    [(REAL, 1, 4), (REAL, 4, 4), (REAL, 5, 8), (REAL, 100, 8), (torch.float32, 5, 8), (torch.float32, 9, 16)],
)
def test_a_vector_is_64_bytes_or_shorter(dtype: torch.dtype, num_lanes: int, expected: int) -> None:
    assert lanes_per_vector(num_lanes, dtype) == expected


def test_steps_that_can_not_be_a_kernel_are_refused() -> None:
    x = torch.zeros(3, dtype=REAL)
    with pytest.raises(ValueError, match=r"expected a step that gives back carried tensors of .* first, got"):
        kernel_source(lambda a: (a.sum(),), 8, carried=[x])
    with pytest.raises(ValueError, match=r"expected a step that gives back carried tensors of .* first, got"):
        kernel_source(lambda a: (a > 0, a), 8, carried=[x])
    with pytest.raises(ValueError, match="at least one argument of a floating-point dtype"):
        kernel_source(lambda a: (~a,), 8, carried=[torch.zeros(3, dtype=torch.bool)])
    with pytest.raises(UnsupportedError, match=r"argument of torch\.float32"):
        kernel_source(lambda a, b: (a + b,), 8, carried=[x], data=[x.float()])
    with pytest.raises(UnsupportedError, match="another device"):
        kernel_source(lambda a: (a,), 8, carried=[x.to("meta")])


def test_a_kernel_larger_than_the_stack_runs_in_threads_of_its_own() -> None:
    """Twice, so that the thread is used again, and with results of several problems."""

    def step(x: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        y = torch.cumsum(noise.repeat(4000) * x.repeat(4000), 0) / 100
        return x + y[::4000], torch.cumsum(y, 0)[-1] / 1000

    generator = torch.Generator().manual_seed(4)
    noise = torch.randn((2, 2, 9, 4), generator=generator, dtype=REAL)
    carried = [torch.randn((2, 9, 4), generator=generator, dtype=REAL)]
    arguments = {"scalars": torch.zeros((0, 2), dtype=REAL), "carried": carried, "noise": [noise]}
    kernel = compiled(step, arguments)
    assert kernel.frame_bytes > MAX_FRAME_BYTES_ON_ANY_STACK
    for _ in range(2):
        compare(kernel((2, 9), **arguments), looped(step, arguments), 1e-11)


def test_what_was_compiled_is_in_the_cache() -> None:
    x = torch.zeros(2, dtype=REAL)
    source = kernel_source(lambda a: (a.exp() - 0.125,), 8, carried=[x])
    assert not source.is_cached
    source.compile()
    assert source.is_cached
    assert toolchain.is_cached(source.code)
    assert source.operations == (2, 2)
