"""What a shell takes beside names of families: fitted guides, files of values; and what was meant by a slip."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch

from ppl_vi import __main__ as command
from ppl_vi import compare
from ppl_vi._version import __version__
from ppl_vi.runtime import names
from tests.strict_json import strict

MODULE = """
import torch, pyro, pyro.distributions as dist
from pyro.infer.autoguide import AutoNormal
from torch.distributions import constraints
data = torch.tensor([1.0, 2.5])
named = {"sd": 0.5, "y": data}
one = {"y": data, "more": 3}
def model(y, sd=1.0):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("n", len(y)):
        pyro.sample("y", dist.Normal(z, sd), obs=y)
def of_dict(given):
    model(given["y"], 0.5)
def guide(y, sd=1.0):
    scale = pyro.param("scale", torch.tensor(0.5), constraint=constraints.positive)
    pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.0)), scale))
trained = AutoNormal(model)
trained(data)
with torch.no_grad():
    trained.locs.z_unconstrained.fill_(1.1)
"""
COMPARE = ["compare", "of_a_shell:model", "--args", "of_a_shell:named"]
FEW = ["--num-replicas", "1", "--num-steps", "16", "--no-plots", "--json", "-"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "of_a_shell.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ppl_vi.cli.workers.MAX_WORKERS", 1)
    with pyro.get_param_store().scope():
        yield tmp_path
    sys.modules.pop("of_a_shell", None)


def divergence(loc: float, scale: float) -> float:
    """KL(N(loc, scale) || posterior): the precision is 1 + 2 / 0.25 = 9, the mean (1 + 2.5) / 0.25 / 9."""
    mean, sd = 14 / 9, 1 / 3
    return math.log(sd / scale) + (scale**2 + (loc - mean) ** 2) / (2 * sd**2) - 0.5


def records(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    assert command.main(arguments) == 0
    found: list[dict[str, Any]] = strict(capsys.readouterr().out)
    return found


def test_guides_are_measured_as_they_are_beside_families_that_are_fitted(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = records([*COMPARE, "--guides", "of_a_shell:trained", "AutoNormal", "--as-is", *FEW], capsys)
    assert [(one["guide"], one["status"] == "as_given") for one in found] == [
        ("of_a_shell:trained", True),
        ("AutoNormal", False),
    ]
    assert found[0]["reverse_kl"] == pytest.approx(divergence(1.1, 0.1), rel=1e-5)


def test_a_file_follows_the_name_of_its_guide(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pyro.param("loc", torch.tensor(1.3))
    pyro.param("scale", torch.tensor(0.25), constraint=torch.distributions.constraints.positive)
    pyro.get_param_store().save("store.pt")
    torch.save({"locs.z_unconstrained": torch.tensor(0.9), "scales.z_unconstrained": torch.tensor(-1.0)}, "state.pt")
    pyro.clear_param_store()
    guides = ["--guides", "of_a_shell:guide=store.pt", "of_a_shell:trained=state.pt"]
    found = records([*COMPARE, *guides, *FEW], capsys)
    assert found[0]["reverse_kl"] == pytest.approx(divergence(1.3, 0.25), rel=1e-5)
    assert found[1]["reverse_kl"] == pytest.approx(divergence(0.9, math.log1p(math.exp(-1.0))), rel=1e-5)


def test_zero_steps_and_a_dict_that_is_one_argument(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["compare", "of_a_shell:of_dict", "--args", "of_a_shell:one", "--guides", "AutoNormal", *FEW]
    (found,) = records([*arguments, "--num-steps", "0"], capsys)
    assert (found["status"], found["num_steps"]) == ("as_given", 0)
    assert found["log_evidence"] == pytest.approx(
        float(
            torch.distributions.MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double() / 4 + 1).log_prob(
                torch.tensor([1.0, 2.5]).double()
            )
        ),
        abs=1e-9,
    )


def test_the_program_alone_shows_examples_that_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([]) == 0
    shown = capsys.readouterr().out
    examples = [line.split()[1:] for line in shown.splitlines() if line.startswith("  ppl-vi ")]
    assert len(examples) == 7
    for example in examples:
        command.parser().parse_args(example)
    with pytest.raises(SystemExit) as stop:
        command.main(["--version"])
    assert (stop.value.code, capsys.readouterr().out) == (0, f"ppl-vi {__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["of_a_shell.model"], "got 'of_a_shell.model'; did you mean of_a_shell:model?"),
        (["of_a_shell.py:model"], "did you mean of_a_shell:model?"),
        (["of_a_shell:modle"], "has no attribute 'modle'; did you mean model"),
        (["of_a_shell:model", "--args", "of_a_shell:dta"], "has no attribute 'dta'; did you mean data"),
        (
            ["of_a_shell:model", "--guides", "of_a_shell.guide"],
            ".guide'; did you mean of_a_shell:guide?",
        ),
        ([*COMPARE[1:], "--guides", "of_a_shell:gide"], "has no attribute 'gide'; did you mean guide"),
        (["of_a_shell:model", "--engine", "compild"], "unknown engine 'compild'; there are auto"),
        (["of_a_shell:model", "--engine", "compild"], "did you mean compiled?"),
        (["of_a_shell:model", "--objective", "trace_elb"], "did you mean trace_elbo"),
        (["of_a_shell:model", "--as-is"], "--as-is is about guides of your own: name one by --guides package.module"),
        (["of_a_shell:model", "--guides", "of_a_shell:guide=none.pt"], "there is no file 'none.pt' with its values"),
        ([*COMPARE[1:], "--guides", "of_a_shell:guide=of_a_shell.py"], "of_a_shell.py holds other things than param"),
        (
            [*COMPARE[1:], "--guides", "of_a_shell:guide", "--as-is"],
            "no value of its parameter 'scale'; it has Auto",
        ),
        (
            ["of_a_shell:model", "--gides", "AutoNormal"],
            "arguments: --gides AutoNormal; did you mean --guides",
        ),
        (["of_a_shell:model", "--num-steps", "-1"], "--num-steps: must be at least 0"),
    ],
)
def test_a_slip_is_one_line_with_what_was_meant(
    arguments: list[str], message: str, folder: Path, refused: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    if "--as-is" in arguments and len(arguments) > 2:  # the table comes first, then the line
        assert command.main(["compare", *arguments, "--no-plots"]) == 2
        assert message in capsys.readouterr().err
        return
    assert message in refused(command.main, ["compare", *arguments])


def never(y: torch.Tensor) -> None:
    raise AssertionError("the model was run")


@pytest.mark.parametrize(
    ("guides", "settings", "error", "message"),
    [
        (["AutoNorml"], {}, ValueError, "unknown guide 'AutoNorml'; did you mean AutoNormal"),
        ({"mine": "my_guides.skewed"}, {}, ValueError, "did you mean my_guides:skewed?"),
        (["no_such_module:guide"], {}, ValueError, "'no_such_module:guide' can't be imported: No module named"),
        ({"mine": 3}, {}, TypeError, "a guide must be a family, its name, a function or a module; got 3"),
        (["AutoNormal"], {"engine": "compild"}, ValueError, "unknown engine 'compild'.*did you mean compiled?"),
        (["AutoNormal"], {"objective": "stll"}, ValueError, "unknown objective 'stll'.*did you mean stl?"),
        (["AutoNormal"], {"num_steps": -1}, ValueError, "num_steps must be at least 0, got -1"),
        (["AutoNormal"], {"num_steps": "10"}, TypeError, "num_steps must be a whole number, got '10'"),
        (["AutoNormal"], {"num_particles": "all"}, TypeError, "must be a whole number or 'auto', got 'all'"),
        (["AutoNormal"], {"num_replicas": 0}, ValueError, "num_replicas must be at least 1, got 0"),
        (["AutoNormal"], {"num_draws": True}, TypeError, "num_draws must be a whole number, got True"),
        (["AutoNormal"], {"lr": "fast"}, TypeError, "lr must be a number, got 'fast'"),
        (["AutoNormal"], {"tolerance": 0.0}, ValueError, "tolerance must be positive and finite, got 0"),
        (["AutoNormal"], {"seed": 0.5}, TypeError, "seed must be a whole number, got 0.5"),
    ],
)
def test_python_refuses_the_same_before_the_model_is_run(
    guides: Any, settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        compare(never, guides, (torch.zeros(2),), **settings)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("module.attribute", "module:attribute"),
        ("package.module.attribute", "package.module:attribute"),
        ("module.py:attribute", "module:attribute"),
        ("folder/module.py:attribute", "folder.module:attribute"),
        ("module:attribute", ""),
        ("attribute", ""),
        ("1.5", ""),
    ],
)
def test_a_path_is_understood_as_it_was_meant(written: str, meant: str) -> None:
    assert names.with_colon(written) == meant


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("module:guide=folder/a=b.pt", ("module:guide", "folder/a=b.pt")),
        ("module:guide", ("module:guide", "")),
        ("AutoNormal=x:y", ("AutoNormal=x:y", "")),
    ],
)
def test_only_a_guide_of_one_s_own_has_a_file(text: str, parts: tuple[str, str]) -> None:
    assert names.guide_and_file(text) == parts
