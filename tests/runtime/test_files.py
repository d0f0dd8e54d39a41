"""Written files: all or nothing, for everybody that the umask lets, and nothing is replaced that is no file."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import pytest

from models.exponential_normal import target
from ppl_vi.runtime.files import is_replaced, replace_file, write_text
from ppl_vi.svi.fit import fit


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_text(path, "old")

    def fail(file: BinaryIO) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace_file(path, fail)
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert path.read_text() == "old"


def test_text_is_utf_8(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "≤ α\n")
    assert (tmp_path / "a.txt").read_bytes() == b"\xe2\x89\xa4 \xce\xb1\n"


def test_what_has_to_outlast_a_failure_is_synced_before_it_is_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, synced = tmp_path / "a", []

    def sync(handle: int) -> None:
        synced.append((os.fstat(handle).st_size, path.exists()))

    monkeypatch.setattr(os, "fsync", sync)
    replace_file(path, lambda file: file.write(b"12345"), durable=True)
    assert synced == [(5, False)]
    replace_file(path, lambda file: file.write(b"1"))
    assert len(synced) == 1


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_get_the_permissions_that_the_umask_leaves(umask: int, mode: int, tmp_path: Path) -> None:
    fitted = fit(target([1.5]), "half_normal", num_steps=1, num_particles=1, num_replicas=1)
    before = os.umask(umask)
    try:
        write_text(tmp_path / "text", "")
        fitted.save(tmp_path / "fit")
    finally:
        assert os.umask(before) == umask
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("text", "fit")] == [mode, mode]


def test_a_link_stays_a_link_and_the_file_that_it_leads_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "a").write_text("old")
    (tmp_path / "link").symlink_to(Path("far", "a"))
    (tmp_path / "chain").symlink_to("link")
    (tmp_path / "dangling").symlink_to(Path("far", "b"))
    write_text(tmp_path / "chain", "new")
    write_text(tmp_path / "dangling", "made")
    assert all((tmp_path / name).is_symlink() for name in ("link", "chain", "dangling"))
    assert ((tmp_path / "far" / "a").read_text(), (tmp_path / "far" / "b").read_text()) == ("new", "made")
    assert sorted(path.name for path in (tmp_path / "far").iterdir()) == ["a", "b"]


def test_devices_and_pipes_are_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe, device = tmp_path / "pipe", tmp_path / "null"
    os.mkfifo(pipe)
    device.symlink_to("/dev/null")
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(pipe.read_text)
        write_text(pipe, "through the pipe")
        assert read.result(timeout=30) == "through the pipe"
    assert stat.S_ISFIFO(pipe.lstat().st_mode)
    before = Path("/dev/null").stat()
    for path in (Path("/dev/null"), device):
        write_text(path, "gone")
    after = Path("/dev/null").stat()
    assert (after.st_ino, after.st_mode, after.st_rdev) == (before.st_ino, before.st_mode, before.st_rdev)
    assert [is_replaced(path) for path in (pipe, device, tmp_path / "none", tmp_path)] == [False, False, True, False]


@pytest.mark.skipif(not os.access("/dev/full", os.W_OK), reason="there is no /dev/full")
def test_a_full_device_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left on device"):
        write_text(Path("/dev/full"), "a")
    assert stat.S_ISCHR(Path("/dev/full").stat().st_mode)


@pytest.mark.parametrize("name", ["a" * 255, "a b\nc", "-rf", "\N{SNOWMAN}", "\udcff", ".hidden", "a." + "b" * 250])
def test_odd_names_are_names(name: str, tmp_path: Path) -> None:
    write_text(tmp_path / name[:255].encode(errors="surrogateescape")[:255].decode(errors="surrogateescape"), "x")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["x"]


def test_impossible_names_are_one_error_each(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "circle").symlink_to("circle")
    for name in ("a" * 256, "file/a", "none/a", "circle", "."):
        with pytest.raises(OSError, match=r"^\[Errno \d+\]"):
            write_text(tmp_path / name, "new")
    with pytest.raises(ValueError, match=r"can't hold a NUL character, got '.*a\\x00b'"):
        write_text(tmp_path / "a\0b", "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["circle", "file"]
    assert (tmp_path / "file").read_text() == "old"


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666])
def test_a_file_keeps_its_permissions(mode: int, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    (tmp_path / "a").chmod(mode)
    write_text(tmp_path / "a", "new")
    assert (tmp_path / "a").stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("to", ["file", "pipe"])
def test_what_standard_output_goes_to_is_written_where_it_goes_on(to: str, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from ppl_vi.runtime.files import write_text\n"
        "print('before'); write_text(Path(sys.argv[1]), 'text\\n'); print('after')"
    )
    for name in ("/dev/stdout", str(tmp_path / "shown") if to == "file" else "/proc/self/fd/1"):
        with (tmp_path / "shown").open("wb") as file:
            command = [sys.executable, "-c", program, name]
            if to == "file":
                subprocess.run(command, stdout=file, check=True)
                shown = (tmp_path / "shown").read_bytes()
            else:
                shown = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
        assert shown == b"before\ntext\nafter\n"
