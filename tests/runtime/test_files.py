"""Written files: all or nothing, for everybody that the umask lets."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

import pytest

from models.exponential_normal import target
from ppl_vi.runtime.files import replace_file, write_text
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
