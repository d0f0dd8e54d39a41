"""The compiler's cache: nothing is compiled twice, and what is damaged is compiled anew."""

from __future__ import annotations

import os
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
    table = f"{toolchain.TABLE}int table[] = {{{'1, ' * toolchain.MAX_OPTIMIZED_BYTES}}};"
    assert toolchain.flags(f"{source(44)}\n{table}\n")[-1] == "-O3"


def planted(path: Path, answer: int) -> None:
    """Puts a library of another answer, with the right digest, where one is looked for."""
    made = path.with_suffix(".other")
    toolchain.build(toolchain.compiler(), source(answer), made)
    os.replace(made, path)


@pytest.mark.parametrize(("opened", "answer"), [("lanes", 45), (".", 48)])
def test_a_library_that_another_user_could_have_planted_is_never_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, opened: str, answer: int
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(cache))
    path = toolchain._cache_path(toolchain.compiler(), source(answer))
    planted(path, 666)
    assert toolchain.is_cached(source(answer))  # the digest alone tells nothing
    (cache / opened).chmod(0o777)
    assert not toolchain.is_cached(source(answer))
    assert toolchain.library(source(answer)).answer() == answer
    assert not toolchain._cache_path(toolchain.compiler(), source(answer)).is_relative_to(cache)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give a file away")
def test_a_library_that_belongs_to_another_user_is_compiled_anew(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    path = toolchain._cache_path(toolchain.compiler(), source(46))
    planted(path, 666)
    os.chown(path, 12_345, 12_345)
    assert toolchain.library(source(46)).answer() == 46
    assert path.stat().st_uid == 0


@pytest.mark.parametrize("umask", [0o002, 0o000])
def test_a_library_is_kept_whatever_the_umask(builds: list[Path], umask: int) -> None:
    before = os.umask(umask)
    try:
        assert [toolchain.library(source(47)).answer() for _ in range(2)] == [47, 47]
    finally:
        os.umask(before)
    assert len(builds) == 1
