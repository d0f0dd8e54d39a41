"""The compiler's cache: nothing is compiled twice, and what is damaged is compiled anew."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ppl_vi.compiler import toolchain

pytestmark = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")


def source(answer: int) -> str:
    return f'extern "C" int answer() {{ return {answer}; }}'


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """The libraries that were compiled, in a cache of their own."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    found: list[Path] = []
    build = toolchain.build

    def counted(compiler_path: str, text: str, path: Path) -> None:
        build(compiler_path, text, path)
        found.append(path)

    monkeypatch.setattr(toolchain, "build", counted)
    return found


def test_each_source_is_compiled_once(builds: list[Path]) -> None:
    assert not toolchain.is_cached(source(41))
    for answer in (41, 42, 41, 42):
        assert toolchain.library(source(answer)).answer() == answer
    assert len(builds) == 2
    assert toolchain.is_cached(source(41))
    assert not list(builds[0].parent.glob("tmp*"))


@pytest.mark.parametrize(
    "damage",
    [
        lambda held: b"",
        lambda held: held[: len(held) // 2],
        lambda held: held[:-1] + bytes([held[-1] ^ 1]),
        lambda held: held[:1000] + bytes([held[1000] ^ 1]) + held[1001:],
    ],
)
def test_a_damaged_library_is_compiled_anew(builds: list[Path], damage: Callable[[bytes], bytes]) -> None:
    toolchain.library(source(43))
    whole = builds[0].read_bytes()
    builds[0].unlink()  # a loaded library must not be written to
    builds[0].write_bytes(damage(whole))
    assert not toolchain.is_cached(source(43))
    assert toolchain.library(source(43)).answer() == 43
    assert toolchain.is_cached(source(43))
    assert len(builds) == 2


def test_what_does_not_compile_says_so(builds: list[Path]) -> None:
    with pytest.raises(RuntimeError, match=r"failed: .*error"):
        toolchain.library("int answer() { return }")
    assert builds == []


def test_without_a_compiler_nothing_is_cached(monkeypatch: pytest.MonkeyPatch, builds: list[Path]) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(toolchain.NoCompilerError, match="no C\\+\\+ compiler: looked for no-such-compiler"):
        toolchain.library(source(44))
    assert not toolchain.is_cached(source(44))


def test_a_long_source_is_compiled_with_fewer_optimizations(builds: list[Path]) -> None:
    assert toolchain.flags(source(44))[-1] == "-O3"
    for longer in ("x" * toolchain.MAX_OPTIMIZED_BYTES, "for (" * (toolchain.MAX_OPTIMIZED_LOOPS + 1)):
        assert toolchain.flags(source(44) + "// " + longer)[-1] == "-O1"
        assert toolchain.library(source(44) + "// " + longer).answer() == 44
