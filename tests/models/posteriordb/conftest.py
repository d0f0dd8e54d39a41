"""A small clone in posteriordb's layout, of data of our own, and the folder of posteriordb's data if there is one."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[3]
# One regression of two columns and flat priors, in the layout of posteriordb's `kidiq`.
DATA = {
    "N": 8,
    "kid_score": [65.0, 98, 85, 83, 115, 98, 69, 106],
    "mom_hs": [1.0, 1, 0, 1, 1, 0, 0, 1],
    "mom_iq": [121.1, 89.4, 115.4, 99.4, 92.7, 107.9, 138.9, 125.1],
}
NAME, REFERENCE = "kidiq-kidscore_momhs", "kidiq-kidscore_momhs"


def zipped(path: Path, name: str, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, json.dumps(content))


def written(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The folder of a clone with one posterior, its data and reference draws of two chains."""
    root = tmp_path / "clone" / "posterior_database"
    described = {"name": NAME, "model_name": "kidscore_momhs", "data_name": "kidiq"}
    written(root / "posteriors" / f"{NAME}.json", described | {"reference_posterior_name": REFERENCE})
    written(root / "posteriors" / "other-other.json", {"model_name": "other", "data_name": "other"})
    written(root / "models" / "info" / "kidscore_momhs.info.json", {"title": "a line"})
    written(root / "data" / "info" / "kidiq.info.json", {"title": "scores"})
    zipped(root / "data" / "data" / "kidiq.json.zip", "kidiq.json", DATA)
    draws = root / "reference_posteriors" / "draws"
    written(draws / "info" / f"{REFERENCE}.info.json", {"checks_made": {"ndraws_is_10k": True}})
    generator = np.random.default_rng(0)
    chains = [{key: generator.normal(size=5).tolist() for key in ("beta[1]", "beta[2]", "sigma")} for _ in range(2)]
    zipped(draws / "draws" / f"{REFERENCE}.json.zip", f"{REFERENCE}.json", chains)
    return root.parent


@pytest.fixture(scope="session")
def cases() -> Path:
    """posteriordb's data and summaries of its draws, which are not part of the project."""
    places = [parent / "shared" / "cases" / "posteriordb" for parent in ROOT.parents]
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        pytest.skip("posteriordb's data are not here: no folder shared/cases/posteriordb beside the checkout")
    return found
