"""The shape of the tree: which way imports point, what importing may not do, what no file may hold."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ppl_vi

ROOT = Path(__file__).resolve().parent.parent

# Each may import itself and what stands to its left.
PACKAGES = ["ppl_vi", "models", "benchmarks"]
# Each may import what stands on a line before its own, and itself.
LAYERS = [
    {"_version"},
    {"runtime"},
    {"numerics", "compiler", "distributions"},
    {"target"},
    {"guides", "truth"},
    {"approximations"},
    {"adapters"},
    {"svi"},
    {"metrics"},
    {"comparison"},
    {"report"},
    {"page"},
    {"model_comparison"},
    {"measuring"},
    {"testing"},
    {"cli"},
    {"sweeps"},
    {"commands"},
    {"__main__"},
    {"launch"},
]

FILES = [path.relative_to(ROOT) for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
OWN_FILES = [path for path in FILES if path.parts[0] == "ppl_vi" and path != Path("ppl_vi/__init__.py")]


def imported_names(path: Path, source: str) -> Iterator[tuple[int, str]]:
    """The line and full dotted name of everything the module at `path` imports, wherever in the file it does so."""
    package = path.with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def layer_of(module: str) -> str:
    """The layer a dotted name inside ppl_vi belongs to: `ppl_vi.svi.fit` to `svi`."""
    layer = module.split(".")[1]
    assert any(layer in line for line in LAYERS), (
        f"'{module}' belongs to no layer: a module inside ppl_vi imports from the file that defines a name, "
        "not from ppl_vi itself; a new folder gets its place in LAYERS in tests/test_layout.py"
    )
    return layer


def allowed_for(layer: str) -> set[str]:
    """What a layer may import."""
    line = next(number for number, names in enumerate(LAYERS) if layer in names)
    return {layer}.union(*LAYERS[:line])


def wrong_packages(path: Path, source: str) -> list[str]:
    """Imports at `path` that point from a package to one on its right, or to the tests."""
    allowed = PACKAGES[: PACKAGES.index(path.parts[0]) + 1]
    barred = {*PACKAGES, "tests"}.difference(allowed)
    return [
        f"{path}:{line} imports {name}; {path.parts[0]} may import {allowed}"
        for line, name in imported_names(path, source)
        if name.split(".")[0] in barred
    ]


def wrong_layers(path: Path, source: str) -> list[str]:
    """Imports at `path`, a file inside ppl_vi, that point from a layer to one on its right."""
    own = layer_of(".".join(path.with_suffix("").parts))
    allowed = allowed_for(own)
    return [
        f"{path}:{line} imports {name}; {own} may import {sorted(allowed)}"
        for line, name in imported_names(path, source)
        if name.split(".")[0] == "ppl_vi"
        if layer_of(name) not in allowed
    ]


@pytest.mark.parametrize("path", FILES, ids=str)
def test_packages_import_one_way(path: Path) -> None:
    assert wrong_packages(path, (ROOT / path).read_text()) == []


@pytest.mark.parametrize("path", OWN_FILES, ids=str)
def test_layers_import_one_way(path: Path) -> None:
    assert wrong_layers(path, (ROOT / path).read_text()) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("ppl_vi/svi/fit.py", "import models.exponential_normal"),
        ("ppl_vi/svi/fit.py", "def f():\n    from models import exponential_normal"),
        ("models/one.py", "from benchmarks.toy_posterior import main"),
        ("models/one.py", "from ..benchmarks import toy_posterior"),
        ("benchmarks/one.py", "from tests import conftest"),
    ],
)
def test_an_import_against_the_packages_is_found(path: str, source: str) -> None:
    assert len(wrong_packages(Path(path), source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("ppl_vi/target/target.py", "import ppl_vi.svi.fit"),
        ("ppl_vi/target/target.py", "from ppl_vi import svi"),
        ("ppl_vi/target/target.py", "from .. import svi"),
        ("ppl_vi/svi/fit.py", "from ..metrics.exact import grid"),
        ("ppl_vi/svi/__init__.py", "from ..metrics import divergence"),
        ("ppl_vi/svi/fit.py", "def f():\n    from ppl_vi.cli import main"),
    ],
)
def test_an_import_against_the_layers_is_found(path: str, source: str) -> None:
    assert len(wrong_layers(Path(path), source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("ppl_vi/svi/fit.py", "from ppl_vi.target.target import Target\nfrom . import program"),
        ("ppl_vi/cli/run.py", "import torch\nfrom ppl_vi import report, numerics, _version"),
    ],
)
def test_an_import_along_the_layers_passes(path: str, source: str) -> None:
    assert wrong_layers(Path(path), source) == []


def test_a_module_outside_the_layers_is_named() -> None:
    with pytest.raises(AssertionError, match=r"'ppl_vi\.helpers' belongs to no layer.*gets its place in LAYERS"):
        wrong_layers(Path("ppl_vi/helpers.py"), "")
    with pytest.raises(AssertionError, match=r"'ppl_vi\.Target' .*imports from the file that defines a name"):
        wrong_layers(Path("ppl_vi/svi/fit.py"), "from ppl_vi import Target")


def test_no_loose_module_stands_at_the_root() -> None:
    loose = {path.name for path in OWN_FILES if len(path.parts) == 2}
    assert loose == {"__main__.py", "_version.py", "launch.py", "model_comparison.py", "testing.py"}


def test_only_public_names_are_shown() -> None:
    assert dir(ppl_vi) == sorted(ppl_vi.__all__)
    assert all(hasattr(ppl_vi, name) for name in ppl_vi.__all__)


def imported_files() -> dict[str, set[str]]:
    """For each module of ppl_vi the modules of ppl_vi that it imports, but for type checking alone."""
    modules = {".".join(path.with_suffix("").parts).removesuffix(".__init__"): path for path in OWN_FILES}
    found: dict[str, set[str]] = {}
    for module, path in modules.items():
        tree = ast.parse((ROOT / path).read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                node.body = [ast.Pass()]
        names = (name for _, name in imported_names(path, ast.unparse(tree)))
        homes = (name if name in modules else name.rpartition(".")[0] for name in names)
        found[module] = {home for home in homes if home in modules} - {module}
    return found


def circles(imports: dict[str, set[str]]) -> list[str]:
    """A way round for each module that imports itself by way of others."""
    found = []
    for start in imports:
        ways, seen = [[start]], {start}
        while ways:
            way = ways.pop(0)
            if start in imports[way[-1]]:
                found.append(" -> ".join([*way, start]))
                break
            ahead = imports[way[-1]] - seen
            seen |= ahead
            ways += [[*way, module] for module in sorted(ahead)]
    return found


def test_files_import_no_circle() -> None:
    imports = imported_files()
    assert "ppl_vi.svi.program" in imports["ppl_vi.svi.fit"]
    assert circles(imports) == []


def test_a_circle_of_files_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b -> c -> b", "c -> b -> c"]


MAX_FUNCTION_LINES, MAX_CLASS_LINES = 40, 300  # without the docstring
LONGER: dict[str, str] = {}  # "file: name", and the reason


def lengths(source: str) -> Iterator[tuple[str, int, int]]:
    """Each function and class of a module: its name, the lines of its body without the docstring, the most allowed."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
            most = MAX_CLASS_LINES if isinstance(node, ast.ClassDef) else MAX_FUNCTION_LINES
            yield node.name, (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0, most


@pytest.mark.parametrize("path", FILES, ids=str)
def test_functions_and_classes_are_short(path: Path) -> None:
    long = [
        f"{path}: {name} has {num} lines, at most {most} are allowed"
        for name, num, most in lengths((ROOT / path).read_text())
        if num > most and f"{path}: {name}" not in LONGER
    ]
    assert long == []


def test_a_long_function_is_found() -> None:
    source = 'def f():\n    """Says so."""\n' + "    x = 1\n" * 41
    assert list(lengths(source)) == [("f", 41, 40)]


# Puts every setting where no default has it, imports all there is, and compares.
IMPORT_EVERYTHING = """
import importlib, random, sys
import numpy, pyro, torch
import rich.table  # draws a number from Python's generator when it is first imported
from torch.distributions import Distribution

pyro.enable_validation({validation})
torch.set_default_dtype(torch.{dtype})
torch.set_num_threads(1)
pyro.set_rng_seed(20)

def state():
    return dict(
        validation=Distribution._validate_args,
        dtype=torch.get_default_dtype(),
        num_threads=torch.get_num_threads(),
        torch=torch.get_rng_state().tolist(),
        numpy=str(numpy.random.get_state()),
        python=random.getstate(),
        parameters=list(pyro.get_param_store()),
    )

before = state()
for name in {modules}:
    importlib.import_module(name)
    changed = [key for key, value in state().items() if value != before[key]]
    if changed:
        sys.exit("importing " + name + " changed: " + ", ".join(changed))
"""


@pytest.mark.parametrize(("validation", "dtype"), [(False, "float64"), (True, "float32")])
def test_importing_prints_nothing_and_leaves_the_process_as_it_was(validation: bool, dtype: str) -> None:
    modules = [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in FILES]
    script = IMPORT_EVERYTHING.format(validation=validation, dtype=dtype, modules=modules)
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (done.stdout, done.stderr) == ("", "")


def project_files() -> list[Path]:
    """What git tracks or would track; where git can't tell, as in an unpacked sdist, every file but caches."""
    if (ROOT / ".git").exists():
        listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        done = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return [Path(name) for name in done.stdout.split("\0") if (ROOT / name).is_file()]
    skipped = {
        ".git",
        ".venv",
        "results",
        "_build",
        "__pycache__",
        ".hypothesis",
        ".mypy_cache",
        ".pytest_cache",
        ".ruff_cache",
    }
    paths = [path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file()]
    return [path for path in paths if not skipped.intersection(path.parts)]


def test_no_file_is_called_utils() -> None:
    assert [str(path) for path in project_files() if path.name == "utils.py"] == []


def test_no_text_file_names_a_machine_path_or_a_package_registry() -> None:
    hosts = ["pypi", "pythonhosted", "download.pytorch", "anaconda", "npmjs"]
    words = ["/work" + "/", *(host + ".org" for host in hosts)]  # in parts, so that this file does not hold them
    contents = {path: (ROOT / path).read_bytes() for path in project_files()}
    assert Path("tests/test_layout.py") in contents
    texts = {path: content.decode(errors="replace") for path, content in contents.items() if b"\0" not in content}
    assert [f"{path} holds {word}" for path, text in texts.items() for word in words if word in text] == []
