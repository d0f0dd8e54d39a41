"""What is shipped, what it needs, and that the needs are pinned."""

import importlib.metadata
import json
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from scipy import stats

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
DECLARED = [
    Requirement(line)
    for lines in (
        PYPROJECT["build-system"]["requires"],
        PROJECT["dependencies"],
        *PROJECT["optional-dependencies"].values(),
    )
    for line in lines
]
CONSTRAINTS = [
    Requirement(line)
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line.strip() and not line.startswith("#")
]
PINNED = {canonicalize_name(constraint.name) for constraint in CONSTRAINTS}
PEERS = {canonicalize_name(Requirement(line).name) for line in PROJECT["optional-dependencies"]["peers"]}
OWN_NAME = canonicalize_name(PROJECT["name"])


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist of this tree and the wheel built from that sdist."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def source_files(*folders: str) -> set[str]:
    """The Python files under the folders, relative to the root."""
    return {path.relative_to(ROOT).as_posix() for folder in folders for path in (ROOT / folder).rglob("*.py")}


def ran(script: str, folder: Path) -> str:
    """What a script prints that is run by this interpreter in a folder."""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_wheel_holds_the_package_alone(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert {name.split("/")[0] for name in names} == {"ppl_vi"}
    assert source_files("ppl_vi") | {"ppl_vi/py.typed", "ppl_vi/compiler/vectors.h"} <= names
    parts = [path for path in (ROOT / "ppl_vi/page").rglob("*") if path.suffix in (".html", ".css", ".js")]
    assert {"explorer.html", "explorer.css", "explorer.js"} <= {path.name for path in parts}
    assert {path.relative_to(ROOT).as_posix() for path in parts} <= names


def test_wheel_has_the_command_and_no_models(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (points,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
        assert "ppl-vi = ppl_vi.launch:main" in archive.read(points).decode()
        archive.extractall(tmp_path)
    # as installed: the wheel's own files and what it depends on, without the trees that development installs point to
    script = f"""
import importlib.util, pathlib, sys
sys.path[:] = [{str(tmp_path)!r}, *(p for p in sys.path if not (pathlib.Path(p) / "benchmarks").is_dir())]
import ppl_vi.__main__ as command
assert pathlib.Path(command.__file__).is_relative_to({str(tmp_path)!r})
assert importlib.util.find_spec("models") is None
command.main(["compare", "--help"])
"""
    assert "MODULE:MODEL" in ran(script, tmp_path)


USERS_MODEL = """
import pyro, pyro.distributions as dist, torch
data = torch.tensor([1.5, 0.5], dtype=torch.float64)
def model(x):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(z, 1.0).expand([2]).to_event(1), obs=x)
"""


@pytest.mark.slow
def test_a_users_model_is_compared_by_the_wheel_alone(built: Path, tmp_path: Path) -> None:
    """From a folder with nothing but that model; log p(x) of a conjugate normal is in closed form."""
    (wheel,) = built.glob("*.whl")
    installed, folder = tmp_path / "installed", tmp_path / "folder"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    folder.mkdir()
    (folder / "mine.py").write_text(USERS_MODEL)
    tiny = ["--num-steps", "20", "--num-particles", "8", "--num-replicas", "1", "--no-plots", "--json", "-"]
    script = f"""
import pathlib, sys
sys.path[:] = [{str(installed)!r}, *(p for p in sys.path if p and not (pathlib.Path(p) / "benchmarks").is_dir())]
import ppl_vi.__main__ as command
sys.exit(command.main(["compare", "mine:model", "--args", "mine:data", "--guides", "AutoNormal", *{tiny!r}]))
"""
    (record,) = json.loads(ran(script, folder))
    covariance = np.eye(2) + 1.0
    assert record["log_evidence"] == pytest.approx(
        stats.multivariate_normal(np.zeros(2), covariance).logpdf([1.5, 0.5])
    )


def test_wheel_carries_version_and_licence(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    version = importlib.import_module("ppl_vi").__version__
    assert wheel.name == f"ppl_vi-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        licence = archive.read(f"ppl_vi-{version}.dist-info/licenses/LICENSE")
    assert licence == (ROOT / "LICENSE").read_bytes()


def test_sdist_holds_everything(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    pages = [path.relative_to(ROOT) for path in (ROOT / "docs").rglob("*.md")]
    documents = {path.as_posix() for path in pages if "_build" not in path.parts}
    files = {"pyproject.toml", "constraints.txt", "Makefile", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", ".ci/run"}
    expected = source_files("ppl_vi", "models", "benchmarks", "tests") | documents | files | {"ppl_vi/py.typed"}
    assert expected - names == set()


def test_versions_are_bounded_below_in_pyproject_and_exact_in_constraints_alone() -> None:
    for requirement in DECLARED:
        if canonicalize_name(requirement.name) != OWN_NAME:
            operators = {specifier.operator for specifier in requirement.specifier}
            assert operators == {">="}, f"pyproject.toml: give '{requirement}' a lower bound and nothing else"
    for constraint in CONSTRAINTS:
        operators = [specifier.operator for specifier in constraint.specifier]
        assert operators == ["=="], f"constraints.txt: pin '{constraint}' with =="


def test_every_declared_dependency_is_pinned() -> None:
    missing = {canonicalize_name(requirement.name) for requirement in DECLARED} - PINNED - {OWN_NAME}
    assert not missing, f"pin these in constraints.txt: {sorted(missing)}"


def test_everything_the_dependencies_need_is_pinned_too() -> None:
    """Follows the requirements of what is installed: one that slips through would be resolved anew each time."""
    waiting = [
        requirement
        for requirement in DECLARED
        if (requirement.marker is None or requirement.marker.evaluate()) and not absent_peer(requirement)
    ]
    seen: set[tuple[str, str]] = set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        for extra in {"", *requirement.extras}:
            if name == OWN_NAME or (name, extra) in seen or from_cuda(name):
                continue
            seen.add((name, extra))
            needed = [Requirement(line) for line in importlib.metadata.requires(name) or []]
            waiting += [one for one in needed if one.marker is None or one.marker.evaluate({"extra": extra})]
    missing = {name for name, _ in seen} - PINNED
    assert not missing, f"pin these in constraints.txt: {sorted(missing)}"


def absent_peer(requirement: Requirement) -> bool:
    """Whether the package is one to compare with, which nothing else needs, and is not installed."""
    name = canonicalize_name(requirement.name)
    return name in PEERS and not list(importlib.metadata.distributions(name=name))


def from_cuda(name: str) -> bool:
    """Whether the package is a part of torch's CUDA build, whose versions torch itself fixes."""
    return name == "triton" or name.startswith(("cuda-", "nvidia-"))
