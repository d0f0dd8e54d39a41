"""Plans: what they compute, and that each wrong entry is told in a line with its place."""

import re
from pathlib import Path
from typing import Any

import pytest

from models.exponential_normal import target
from ppl_vi.sweeps.files import line_of, plan_from_file
from ppl_vi.sweeps.options import Place, PlanError
from ppl_vi.sweeps.plan import plan_of
from ppl_vi.sweeps.tasks import tasks_of

TOY = {"toy": target([0.5, 1.5])}


def wrong(**entries: object) -> list[str]:
    with pytest.raises(PlanError) as found:
        plan_of({"models": TOY, "guides": ["lognormal"], **entries})
    assert str(found.value) == "\n".join(found.value.lines)
    return list(found.value.lines)


def test_a_plan_has_every_combination_but_those_excluded() -> None:
    plan = plan_of(
        {
            "models": TOY,
            "guides": ["lognormal", "gamma"],
            "lr": [0.1, 0.2],
            "num_steps": (50, 60, 70),
            "objective": ["stl", "iwae:8"],
            "seed": "3:7",
            "exclude": [{"guide": "gamma", "lr": [0.1]}, {"objective": "iwae:8", "num_steps": 50}],
        }
    )
    expected = {
        (guide, objective, lr, steps)
        for guide in ("lognormal", "gamma")
        for objective in ("stl", "iwae:8")
        for lr in (0.1, 0.2)
        for steps in (50, 60, 70)
        if not (guide == "gamma" and lr == 0.1) and not (objective == "iwae:8" and steps == 50)
    }
    found = [(one.guide, one.objective, one.lr, one.num_steps) for one in plan.settings]
    assert set(found) == expected
    assert len(found) == len(expected) == 15
    assert plan.seeds == (3, 4, 5, 6)
    assert plan.num_fits == 15 * 4 * 2


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"steps": 3}, "steps: unknown entry 'steps'"),
        ({"lr": [0.1, -1.0]}, "lr[1]: lr must be above 0"),
        ({"lr": float("nan")}, "lr[0]: lr must be above 0"),
        ({"lr": "fast"}, "lr[0]: expected a step size, got 'fast'"),
        ({"lr": []}, "lr: expected at least one value"),
        ({"num_steps": 0}, "num_steps[0]: must be at least 1"),
        ({"num_steps": 2.5}, "num_steps[0]: expected a whole number, got 2.5"),
        ({"num_steps": True}, "num_steps[0]: expected a whole number, got True"),
        ({"num_particles": "many"}, "num_particles[0]: expected a whole number"),
        ({"objective": "trace"}, "objective[0]: unknown objective 'trace'"),
        ({"objective": "renyi:1"}, "objective[0]: alpha must be finite and not 1"),
        ({"engine": "fast"}, "engine: unknown engine 'fast'"),
        ({"engine": ["auto", "pyro"]}, "engine: expected one value, got 2"),
        ({"block": 0}, "block: must be at least 1"),
        ({"num_draws": 1}, "num_draws: must be at least 2"),
        ({"seed": "4:4"}, "seed: expected FIRST:END"),
        ({"seed": ["0:2", "x"]}, "seed[1]: expected a seed or FIRST:END"),
        ({"seed": -1}, "seed: must be at least 0"),
        ({"seed": []}, "seed: expected at least one seed"),
        ({"guides": []}, "guides: expected at least one"),
        ({"guides": ["lognorml"]}, "guides[0]: unknown guide 'lognorml'; did you mean lognormal"),
        ({"guides": [3]}, "guides[0]: a guide must be"),
        ({"guides": ["nowhere:guide"]}, "guides[0]: guide 'nowhere:guide' can't be imported"),
        ({"guides": ["gamma", {"guide": "lognormal", "name": "gamma"}]}, "guides[1]: two guides are called 'gamma'"),
        ({"models": []}, "models: expected at least one"),
        ({"models": ["nowhere:model"]}, "models[0]: 'nowhere:model' can't be imported"),
        ({"models": ["models.exponential_normal"]}, "models[0]: expected module:attribute"),
        ({"models": [{"name": "x"}]}, "models[0]: expected model or target, got name"),
        ({"models": [{"model": "a:b", "arg": 1}]}, "models[0]: unknown entry 'arg'"),
        ({"models": [{"target": "models.exponential_normal:log_evidence", "args": [[1.0]]}]}, "returned Tensor"),
        ({"exclude": [{"gide": "gamma"}]}, "exclude[0]: unknown name 'gide'"),
        ({"exclude": [{"guide": "gamma"}]}, "exclude[0]: nothing in the plan matches"),
        ({"exclude": [{"guide": "lognormal"}]}, "exclude: everything is excluded"),
        ({"objective": "iwae:8", "num_particles": [16, 12]}, "num_particles must be a multiple of K = 8"),
        ({"engine": "pyro", "objective": "stl"}, "objective 'stl'"),
    ],
)
def test_a_wrong_entry_is_one_line_with_its_place(entries: dict[str, object], said: str) -> None:
    (line,) = wrong(**entries)
    assert said in line
    assert "\n" not in line


def test_all_wrong_entries_are_told_at_once() -> None:
    lines = wrong(lr=[-1.0, 0.1, -2.0], steps=3, guides=["gama"], models=["nowhere:model"], seed="x")
    assert [line.partition(":")[0] for line in lines] == ["steps", "lr[0]", "lr[2]", "seed", "guides[0]", "models[0]"]


def test_a_model_that_learns_is_refused() -> None:
    import pyro
    import pyro.distributions as dist
    import torch

    def model() -> None:
        loc = pyro.param("loc", torch.tensor(0.0))
        z = pyro.sample("z", dist.Normal(loc, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(1.0))

    (line,) = wrong(models=[model])
    assert "has parameters of its own that are to be learned" in line


def test_lines_of_a_file_are_told(tmp_path: Path) -> None:
    file = tmp_path / "plan.toml"
    file.write_text(
        'models = [\n  "models.exponential_normal:model",\n  "nowhere:x",\n]\n'  # lines 1 to 4
        'guides = ["lognormal", "gama"]\nlr = [0.1,\n  -1]\nseeds = 3\n\n'  # lines 5 to 9
        '[[exclude]]\nguide = "lognormal"\nlr = 0.1\n[[exclude]]\nlr = 7.0\nx = 1\n'
    )
    with pytest.raises(PlanError) as found:
        plan_from_file(file)
    places = {
        line.removeprefix(f"{file}:").partition(": ")[0] + " " + line.split(": ")[1] for line in found.value.lines
    }
    assert places >= {"8 seeds", "7 lr[1]", "5 guides[1]", "3 models[1]", "13 exclude[1]"}


def test_the_line_of_an_item_is_that_after_the_items_before_it() -> None:
    text = "lr = [\n 0.2, 0.2,\n 0.2]\nother = 1\n"
    assert [line_of(text, Place("lr", i), [0.2, 0.2, 0.2]) for i in range(3)] == [2, 2, 3]
    assert line_of(text, Place("other")) == 4
    assert line_of(text, Place("missing")) == 1


@pytest.mark.parametrize("content", ["models = [", "lr = 1 = 2", 'x = "\xff'])
def test_what_is_no_toml_is_one_line(tmp_path: Path, content: str) -> None:
    file = tmp_path / "plan.toml"
    file.write_bytes(content.encode("latin-1"))
    with pytest.raises(PlanError, match="is no TOML") as found:
        plan_from_file(file)
    assert len(found.value.lines) == 1


def batches(**entries: Any) -> list[tuple[int, int, tuple[int, ...]]]:
    """First seed, size, and the seeds asked for, of each batch of a plan."""
    plan = plan_of({"models": TOY, "guides": ["lognormal"], **entries})
    return [(task.settings.seed, task.settings.num_replicas, task.seeds) for task in tasks_of(plan, {})]


def test_seeds_are_in_the_same_batch_whatever_is_asked_for() -> None:
    assert batches() == [(0, 4, (0, 1, 2, 3))]
    assert batches(seed="0:10") == [(0, 4, tuple(range(4))), (4, 6, tuple(range(4, 10)))]
    assert batches(seed=[23, 7, 2]) == [(0, 4, (2,)), (4, 6, (7,)), (20, 10, (23,))]
    assert batches(seed=[23, 7, 2], block=3) == [(0, 3, (2,)), (6, 3, (7,)), (21, 3, (23,))]
    long = batches(seed="0:100")
    assert long[:2] == batches(seed="0:10")
    assert [seed for _, _, seeds in long for seed in seeds] == list(range(100))
    assert all(size == 10 for _, size, _ in long[2:])


def test_a_longer_sweep_keeps_the_tasks_of_a_shorter_one() -> None:
    def keys(seed: str) -> set[str]:
        plan = plan_of({"models": TOY, "guides": ["lognormal"], "seed": seed})
        return {task.key for task in tasks_of(plan, {})}

    assert keys("0:4") < keys("0:10") < keys("0:100")


def test_the_plan_of_the_page_is_that_of_its_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "sweeps.md").read_text(encoding="utf-8")
    blocks = dict(re.findall(r"^```(python|toml)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL))
    (tmp_path / "exponential.py").write_text(blocks["python"])
    (tmp_path / "plan.toml").write_text(blocks["toml"])
    monkeypatch.syspath_prepend(tmp_path)
    plan = plan_from_file(tmp_path / "plan.toml").plan
    assert plan.num_fits == 2 * 2 * 2 * 4
    assert {setting.num_steps for setting in plan.settings} == {200}
