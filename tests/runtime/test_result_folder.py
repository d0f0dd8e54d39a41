"""The folder of results: what a run wrote is told, an old figure never stands beside new records, no result is lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.toy_posterior import OUT, main
from ppl_vi.runtime.outputs import noting_failures, tell_results, write_output_text
from ppl_vi.runtime.result_folder import MANIFEST, OtherResultsError, claimed, collecting

TINY = ["--num-steps", "20", "--num-particles", "8", "--num-replicas", "1", "--out"]


def wrote(folder: Path, whose: str, *names: str) -> list[str]:
    """What is said of a run that writes so many files."""
    with collecting() as results:
        results.folder, results.whose = folder, whose
        for name in names:
            write_output_text(folder / name, f"{whose}: {name}")
        return results.in_words()


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_run_of_the_same_model_renews_what_the_earlier_one_wrote_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "mine.png").write_text("a picture")
    assert wrote(tmp_path, "a", "records.json", "old.png", "gaps.png") == [
        f"written to {tmp_path}: records.json, old.png, gaps.png"
    ]
    assert wrote(tmp_path, "a", "records.json", "gaps.png", "new.png") == [
        f"written to {tmp_path}: records.json, gaps.png, new.png",
        f"removed from {tmp_path}, since an earlier run had written them: old.png",
    ]
    assert names_in(tmp_path) == {"mine.png", "records.json", "gaps.png", "new.png", MANIFEST}
    assert json.loads((tmp_path / MANIFEST).read_text()) == {
        "whose": "a",
        "files": ["records.json", "gaps.png", "new.png"],
    }


def test_old_figures_are_gone_as_soon_as_the_first_new_file_is_there(tmp_path: Path) -> None:
    wrote(tmp_path, "a", "records.json", "gaps.png")
    wrote(tmp_path, "a", "records.json")  # as after Ctrl-C
    assert names_in(tmp_path) == {"records.json", MANIFEST}


def test_a_folder_that_holds_another_models_results_is_left_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    assert claimed(folder, "a", given=True, unlisted_is_own=False) == (folder, "")
    wrote(folder, "a", "records.json")
    assert claimed(folder, "a", given=True, unlisted_is_own=False) == (folder, "")
    with pytest.raises(OtherResultsError, match="holds the results of a: name another folder"):
        claimed(folder, "b", given=True, unlisted_is_own=False)
    other, said = claimed(folder, "b", given=False, unlisted_is_own=False)
    assert other == tmp_path / "results_2"
    assert said == f"'{folder}' holds the results of a; those of b go to '{other}'"
    other.mkdir()
    wrote(other, "b", "records.json")
    assert claimed(folder, "b", given=False, unlisted_is_own=False)[0] == other  # a rerun of b
    assert claimed(folder, "c", given=False, unlisted_is_own=False)[0] == tmp_path / "results_3"


@pytest.mark.parametrize("manifest", [None, "", "[1]", '{"whose": 3, "files": []}', '{"files": ["records.json"]}'])
def test_records_without_a_manifest_may_be_anybodys(tmp_path: Path, manifest: str | None) -> None:
    (tmp_path / "records.json").write_text("[]")
    if manifest is not None:
        (tmp_path / MANIFEST).write_text(manifest)
    with pytest.raises(
        OtherResultsError, match=f"the results of an earlier version, which wrote no {MANIFEST} that says"
    ):
        claimed(tmp_path, "a", given=True, unlisted_is_own=False)
    assert claimed(tmp_path, "a", given=True, unlisted_is_own=True)[0] == tmp_path
    _, said = claimed(tmp_path, "a", given=False, unlisted_is_own=False)
    assert said.endswith(f"those of a go to '{tmp_path}_2'. Remove '{tmp_path}' if you don't need them")


def test_a_manifest_can_not_name_files_elsewhere_nor_what_is_no_plain_file(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    for path in (tmp_path / "mine", folder / "listed", folder / "goal"):
        path.write_text("")
    (folder / "link").symlink_to("goal")
    (folder / "folder").mkdir()
    names = ["../mine", str(tmp_path / "mine"), "link", "folder", "listed", "missing", "..", "", 3]
    (folder / MANIFEST).write_text(json.dumps({"whose": "a", "files": names}))
    wrote(folder, "a", "records.json")
    assert names_in(folder) == {"goal", "link", "folder", "records.json", MANIFEST}
    assert (tmp_path / "mine").exists()


def test_what_could_not_be_written_is_not_told_as_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "table.txt").mkdir()
    with noting_failures(), collecting() as results:
        results.folder, results.whose = tmp_path, "a"
        for path in (tmp_path / "records.json", tmp_path / "table.txt", tmp_path.parent / "also.json"):
            write_output_text(path, "")
        capsys.readouterr()
        tell_results()
    assert capsys.readouterr().err.splitlines() == [
        f"written to {tmp_path}: records.json",
        f"written to {tmp_path.parent / 'also.json'}",
    ]


def test_figures_of_an_earlier_set_of_guides_do_not_stay(
    tmp_path: Path, refused: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--x", "0", "1.5", "--guides", "exponential", *TINY, str(tmp_path)]) == 0
    assert "gaps_x_1.5.png" in names_in(tmp_path)
    assert main(["--x", "0", "--guides", "half_normal", "--no-plots", *TINY, str(tmp_path)]) == 0
    assert names_in(tmp_path) == {"records.json", "records.csv", "table.txt", MANIFEST}
    (tmp_path / MANIFEST).write_text(json.dumps({"whose": "m:model", "files": ["records.json"]}))
    before = (tmp_path / "records.json").read_bytes()
    assert "removed from" in capsys.readouterr().err
    assert "holds the results of m:model" in refused(main, ["--x", "0", *TINY, str(tmp_path)])
    assert (tmp_path / "records.json").read_bytes() == before


def test_a_program_says_why_its_results_are_in_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    OUT.mkdir(parents=True)
    (OUT / "records.json").write_text("[]")
    (OUT / MANIFEST).write_text(json.dumps({"whose": "m:model", "files": ["records.json"]}))
    assert main(["--x", "0", "--guides", "exponential", "--no-plots", *TINY[:-1]]) == 0
    told = capsys.readouterr().err.splitlines()
    assert f"'{OUT}' holds the results of m:model; those of toy_posterior go to '{OUT}_2'" in told
    assert f"written to {OUT}_2: records.json, records.csv, table.txt" in told
    assert names_in(OUT) == {"records.json", MANIFEST}
