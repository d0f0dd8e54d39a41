"""Outputs of programs: what can't be written is told in one line, and the tables are printed all the same."""

from __future__ import annotations

import io
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks.toy_posterior import main
from ppl_vi.runtime.outputs import noting_failures, why_not_file, write_output_text
from tests.conftest import FIRST_LINE

TOY = ["--quick", "--guides", "exponential", "half_normal", "--x", "1.5", "--no-plots", "--out"]
needs_full = pytest.mark.skipif(not os.access("/dev/full", os.W_OK), reason="there is no /dev/full")


@pytest.fixture(autouse=True)
def _one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppl_vi.cli.workers.MAX_WORKERS", 1)


@needs_full
def test_a_full_disk_is_one_line_and_the_table_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TOY, str(tmp_path), "--json", "/dev/full"]) == 1
    shown = capsys.readouterr()
    assert "half_normal" in shown.out
    first, told = shown.err.removeprefix(FIRST_LINE).splitlines()
    assert first == "can't write '/dev/full': No space left on device; what was found is shown all the same"
    assert told == f"written to {tmp_path}: records.json, records.csv, table.txt"
    assert len(json.loads((tmp_path / "records.json").read_text())) == 2
    assert not Path("/dev/full").is_file()


def test_where_the_folder_has_no_room_that_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ppl_vi.runtime.outputs.write_text", full)
    assert main([*TOY, str(tmp_path)]) == 1
    shown = capsys.readouterr()
    assert "half_normal" in shown.out
    assert shown.err.removeprefix(FIRST_LINE).count("\n") == 1


def test_a_pipe_gets_one_document(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit((tmp_path / "pipe").read_text)
        assert main([*TOY, str(tmp_path / "out"), "--json", str(tmp_path / "pipe")]) == 0
        records = json.loads(read.result(timeout=30))
    assert [record["guide"] for record in records] == ["exponential", "half_normal"]
    assert records == json.loads((tmp_path / "out" / "records.json").read_text())


def test_an_output_that_is_written_at_last_is_no_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with noting_failures() as failed:
        write_output_text(tmp_path / "folder" / "a", "early")
        (tmp_path / "folder").mkdir()
        assert list(failed) == [tmp_path / "folder" / "a"]
        write_output_text(tmp_path / "folder" / "a", "late")
        assert failed == {}
    assert (tmp_path / "folder" / "a").read_text() == "late"
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(OSError, match="No such file"):
        write_output_text(tmp_path / "none" / "a", "")


@needs_full
@pytest.mark.parametrize("json_too", [False, True])
def test_tables_that_can_not_be_printed_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, json_too: bool
) -> None:
    errors = io.StringIO()
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        monkeypatch.setattr(sys, "stderr", errors)
        assert main([*TOY, str(tmp_path), *(["--json", "-"] if json_too else [])]) == 1
    assert errors.getvalue().splitlines()[-1] == "toy_posterior: error: can't read or write: No space left on device"
    assert (tmp_path / "records.json").exists()


def test_what_can_be_told_of_a_file_beforehand(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("new")
    (tmp_path / "circle").symlink_to("circle")
    for name in ("file", "link", "new"):
        assert why_not_file(tmp_path / name) == ""
    assert why_not_file(Path("/dev/null")) == ""
    for name, why in {
        ".": "is a folder",
        "none/a": "there is no folder",
        "file/a": "there is no folder",
        "circle": "Too many levels of symbolic links",
        "a" * 300: "File name too long",
        "a\0b": "null",
    }.items():
        assert why in why_not_file(tmp_path / name)
