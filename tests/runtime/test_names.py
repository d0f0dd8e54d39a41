"""Names and numbers that are checked before torch is imported are those that the tables behind them have."""

from __future__ import annotations

import subprocess
import sys

import pytest

from benchmarks.zoo import MODELS
from models import ZOO
from ppl_vi import guides
from ppl_vi.guides.amortized import AMORTIZED
from ppl_vi.runtime import names
from ppl_vi.svi.objectives import OBJECTIVES, find_objective


def test_the_names_are_those_of_the_tables() -> None:
    assert tuple(guides.FAMILIES) == names.FAMILIES
    assert tuple(AMORTIZED) == names.AMORTIZED
    assert tuple(OBJECTIVES) == tuple(names.OBJECTIVES)
    assert tuple(ZOO) == MODELS


@pytest.mark.parametrize("text", ["1_0", "٣", "１.5", "²", "0x1", "", " 1", "1 ", "1e", ".", "--1", "1,5", "Ⅻ"])
def test_what_is_no_plain_number_is_refused(text: str) -> None:
    for read in (names.number, names.whole_number):
        with pytest.raises(ValueError, match=r"expected a (whole )?number, got '"):
            read(text)


@pytest.mark.parametrize("text", ["1", "-1.5", "+2e-3", ".5", "5.", "1E10", "inf", "-Infinity", "nan"])
def test_plain_numbers_are_what_python_makes_of_them(text: str) -> None:
    assert repr(names.number(text)) == repr(float(text))


def test_whole_numbers_are_whole() -> None:
    assert [names.whole_number(text) for text in ("0", "-12", "+7", "007")] == [0, -12, 7, 7]
    for text in ("1.0", "1e3", "9" * 5000):
        with pytest.raises(ValueError, match="expected a whole number"):
            names.whole_number(text)


@pytest.mark.parametrize("text", ["trace_elbo", "renyi", "renyi:0.25", "renyi:-1", "iwae", "iwae:3", "stl"])
def test_an_objective_that_is_let_through_is_one(text: str) -> None:
    name, number = names.objective_of(text)
    found = find_objective(text)
    assert found.name.split(":")[0] == name
    assert number is None or float(found.name.split(":")[1]) == number


def test_a_bad_argument_is_refused_without_torch() -> None:
    program = (
        "import sys\n"
        "from ppl_vi.__main__ import main\n"
        "for bad in (['--guides', 'x'], ['--objective', 'x'], ['--json', '/nowhere/x'], ['--lr', '1e300']):\n"
        "    try:\n"
        "        code = main(['compare', 'no:model', *bad])\n"
        "    except SystemExit as stop:\n"
        "        code = stop.code\n"
        "    assert code == 2, bad\n"
        "    assert not {'torch', 'numpy', 'pyro'} & set(sys.modules), bad\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (0, 4), done.stderr


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("mine", "package.module:mine"),
        ("mine=folder:1/a.pt", "package.module:mine=folder:1/a.pt"),
        ("Guides.mine", "package.module:Guides.mine"),
        ("other:mine=a.pt", "other:mine=a.pt"),
        ("AutoNormal", "AutoNormal"),
        ("AutoDelta", "AutoDelta"),
        ("all", "all"),
    ],
)
def test_a_guide_is_looked_for_in_the_models_module_unless_it_is_a_family(given: str, meant: str) -> None:
    assert names.in_module(given, "package.module") == meant
