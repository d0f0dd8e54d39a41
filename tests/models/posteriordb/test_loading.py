"""posteriordb's layout: what is read, and one line for what is missing, wrong or incomplete."""

import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from models.posteriordb import PosteriorDatabase, PosteriorDatabaseError, posterior
from models.posteriordb.loading import VARIABLE
from tests.models.posteriordb.conftest import DATA, NAME, written, zipped

NUMBERS = ("beta[1]", "beta[2]", "sigma")
DRAWS = f"posterior_database/reference_posteriors/draws/draws/{NAME}.json.zip"
KIDIQ = "posterior_database/data/data/kidiq.json.zip"


def test_a_clone_is_read(clone: Path) -> None:
    database = PosteriorDatabase.at(clone)
    assert database == PosteriorDatabase.at(clone / "posterior_database")
    assert database.names() == (NAME, "other-other")
    assert database.data(NAME) == DATA
    assert (database.model_info(NAME)["title"], database.data_info(NAME)["title"]) == ("a line", "scores")
    assert database.reference_info(NAME)["checks_made"] == {"ndraws_is_10k": True}
    draws = database.reference_draws(NAME)
    assert draws is not None
    assert {name: value.shape for name, value in draws.items()} == dict.fromkeys(
        ("beta[1]", "beta[2]", "sigma"), (2, 5)
    )
    assert draws["beta[1]"][0, 0] == pytest.approx(0.12573, abs=1e-5)  # the generator's first number


def test_a_posterior_without_reference_draws_has_none(clone: Path) -> None:
    database = PosteriorDatabase.at(clone)
    assert (database.reference_name("other-other"), database.reference_draws("other-other")) == (None, None)
    assert database.reference_info("other-other") == {}


def test_the_environment_names_a_clone(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(clone))
    assert PosteriorDatabase.at().names() == (NAME, "other-other")
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(PosteriorDatabaseError, match=r"a clone of posteriordb is needed.*--posteriordb PATH"):
        PosteriorDatabase.at()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def uneven(path: Path) -> None:
    zipped(path, "x.json", [{"sigma": [1.0]}, {"tau": [2.0]}])


def two_files(path: Path) -> None:
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("more.json", "{}")


@pytest.mark.parametrize(
    ("file", "damage", "words"),
    [
        (KIDIQ, Path.unlink, "the clone of posteriordb is not complete: there is no '.*kidiq.json.zip'"),
        (KIDIQ, cut, "'.*kidiq.json.zip' can't be unpacked: .*; is the clone complete?"),
        (KIDIQ, emptied, "can't be unpacked"),
        (KIDIQ, two_files, "expected one JSON file in '.*', got 2"),
        (KIDIQ, lambda path: zipped(path, "x.json", [1]), "expected the data of '.*' to be a dict, got list"),
        (KIDIQ, lambda path: zipped(path, "x.json", {"N": 8}), "lack 'mom_hs'; is the clone complete?"),
        (DRAWS, Path.unlink, "not complete: there is no '.*draws"),
        (DRAWS, uneven, "does not hold chains of the same numbers"),
        (DRAWS, lambda path: zipped(path, "x.json", []), "does not hold chains of the same numbers"),
        (f"posterior_database/posteriors/{NAME}.json", Path.unlink, f"has no posterior '{NAME}'"),
        (f"posterior_database/posteriors/{NAME}.json", emptied, "is no JSON"),
        (
            f"posterior_database/posteriors/{NAME}.json",
            lambda path: written(path, {"model_name": "m"}),
            "says no data_name",
        ),
    ],
)
def test_what_is_wrong_is_one_line(clone: Path, file: str, damage: Callable[[Path], None], words: str) -> None:
    damage(clone / file)
    database = PosteriorDatabase.at(clone)
    with pytest.raises(PosteriorDatabaseError) as raised:
        assert posterior(database, NAME) == database.reference_draws(NAME)
    assert re.search(words, str(raised.value))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("path", "words"), [("nowhere", "does not exist"), (".", "has no folder posterior_database")])
def test_what_is_no_clone_is_one_line(tmp_path: Path, path: str, words: str) -> None:
    with pytest.raises(PosteriorDatabaseError, match=words):
        PosteriorDatabase.at(tmp_path / path)


def test_a_posterior_that_is_not_ported_is_told_with_those_like_it(clone: Path) -> None:
    with pytest.raises(PosteriorDatabaseError, match=r"'kidiq-kidscore_momhsq' is not ported.*kidiq-kidscore_momhsiq"):
        posterior(PosteriorDatabase.at(clone), "kidiq-kidscore_momhsq")
