"""Reads posteriordb's own layout: posteriors, data, models' descriptions and reference draws of a clone.

posteriordb (Magnusson et al. 2024, posteriordb: Testing, benchmarking and developing Bayesian inference algorithms) is
a collection of posteriors, each a Stan model with data, some with reference draws. Nothing of it is part of this
project. The user clones it, and names the clone by `--posteriordb` or by the environment variable `PPL_VI_POSTERIORDB`:

    git clone https://github.com/stan-dev/posteriordb

What is read, below the folder `posterior_database`:

- `posteriors/NAME.json`: the names of model and data, and of the reference draws if there are any;
- `models/info/MODEL.info.json` and `data/info/DATA.info.json`: titles and sources;
- `data/data/DATA.json.zip`: the data;
- `reference_posteriors/draws/info/NAME.info.json` and `.../draws/draws/NAME.json.zip`: reference draws, a list of
  chains, each a dict from the name of a number, such as `beta[2]`, to its draws.
"""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

VARIABLE = "PPL_VI_POSTERIORDB"  # the environment variable that names a clone
FOLDER = "posterior_database"  # of a clone
URL = "https://github.com/stan-dev/posteriordb"
CLONE = f"git clone {URL}"


class PosteriorDatabaseError(ValueError):
    """What was looked for in a clone of posteriordb is missing, damaged or of another form; the message says which."""


@dataclass(frozen=True)
class PosteriorDatabase:
    """A clone of posteriordb.

    Attributes:
        root: its folder `posterior_database`.
    """

    root: Path

    @staticmethod
    def at(path: str | os.PathLike[str] | None = None) -> PosteriorDatabase:
        """The clone at a path, which may be that of the clone or of its folder `posterior_database`.

        Args:
            path: where it is; by default what the environment variable `PPL_VI_POSTERIORDB` says.

        Raises:
            PosteriorDatabaseError: no path is named, or there is no clone.
        """
        named = path if path is not None else os.environ.get(VARIABLE, "")
        if not str(named):
            raise PosteriorDatabaseError(
                f"a clone of posteriordb is needed, and none was named: {CLONE}, then say --posteriordb PATH or "
                f"{VARIABLE}=PATH"
            )
        for root in (Path(named) / FOLDER, Path(named)):
            if (root / "posteriors").is_dir():
                return PosteriorDatabase(root)
        wrong = "has no folder posterior_database/posteriors" if Path(named).exists() else "does not exist"
        raise PosteriorDatabaseError(f"expected a clone of posteriordb ({CLONE}), but '{named}' {wrong}")

    def names(self) -> tuple[str, ...]:
        """The names of all posteriors, in the order of the alphabet."""
        return tuple(sorted(path.stem for path in (self.root / "posteriors").glob("*.json")))

    def posterior(self, name: str) -> dict[str, Any]:
        """The description of a posterior: `model_name`, `data_name`, `reference_posterior_name`, `dimensions`, ..."""
        path = self.root / "posteriors" / f"{name}.json"
        if not path.is_file():
            raise PosteriorDatabaseError(f"the clone of posteriordb at '{self.root}' has no posterior '{name}'")
        described = self._json(path)
        if missing := [key for key in ("model_name", "data_name") if not isinstance(described.get(key), str)]:
            raise PosteriorDatabaseError(f"'{path}' says no {' and no '.join(missing)}")
        return described

    def model_info(self, name: str) -> dict[str, Any]:
        """The description of a posterior's model: `title`, `description`, `references`, ..."""
        return self._json(self.root / "models" / "info" / f"{self.posterior(name)['model_name']}.info.json")

    def data_info(self, name: str) -> dict[str, Any]:
        """The description of a posterior's data."""
        return self._json(self.root / "data" / "info" / f"{self.posterior(name)['data_name']}.info.json")

    def data(self, name: str) -> dict[str, Any]:
        """A posterior's data as Stan reads them: numbers and nested lists by name."""
        found = self._zipped(self.root / "data" / "data" / f"{self.posterior(name)['data_name']}.json.zip")
        if not isinstance(found, dict):
            raise PosteriorDatabaseError(f"expected the data of '{name}' to be a dict, got {type(found).__name__}")
        return found

    def reference_name(self, name: str) -> str | None:
        """The name of a posterior's reference draws, which may be another's; None where posteriordb has none."""
        return self.posterior(name).get("reference_posterior_name") or None

    def reference_info(self, name: str) -> dict[str, Any]:
        """How the reference draws were made, and the checks that they passed; {} where posteriordb has none."""
        reference = self.reference_name(name)
        folder = self.root / "reference_posteriors" / "draws" / "info"
        return self._json(folder / f"{reference}.info.json") if reference else {}

    def reference_draws(self, name: str) -> dict[str, np.ndarray] | None:
        """The reference draws, `(chains, draws)` for each number by name; None where posteriordb has none.

        Raises:
            PosteriorDatabaseError: there should be draws, but the file is missing, damaged, or no list of chains of the
                same numbers.
        """
        reference = self.reference_name(name)
        if not reference:
            return None
        path = self.root / "reference_posteriors" / "draws" / "draws" / f"{reference}.json.zip"
        chains = self._zipped(path)
        try:
            return {key: np.array([chain[key] for chain in chains], dtype=np.float64) for key in chains[0]}
        except (TypeError, KeyError, IndexError, ValueError) as error:
            raise PosteriorDatabaseError(f"'{path}' does not hold chains of the same numbers: {error}") from error

    def _json(self, path: Path) -> dict[str, Any]:
        return _parsed(path, _bytes(path))

    def _zipped(self, path: Path) -> Any:
        if not path.is_file():
            raise _missing(path)
        try:
            with zipfile.ZipFile(path) as archive:
                inside = [name for name in archive.namelist() if name.endswith(".json")]
                if len(inside) != 1:
                    raise PosteriorDatabaseError(f"expected one JSON file in '{path}', got {len(inside)}")
                return _parsed(path, archive.read(inside[0]))
        except (zipfile.BadZipFile, OSError, EOFError, zlib.error) as error:
            raise PosteriorDatabaseError(f"'{path}' can't be unpacked: {error}; is the clone complete?") from error


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise _missing(path) from error
    except OSError as error:
        raise PosteriorDatabaseError(f"'{path}' can't be read: {error.strerror}") from error


def _missing(path: Path) -> PosteriorDatabaseError:
    return PosteriorDatabaseError(f"the clone of posteriordb is not complete: there is no '{path}'")


def _parsed(path: Path, content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        raise PosteriorDatabaseError(f"'{path}' is no JSON: {error}") from error
