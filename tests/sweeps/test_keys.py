"""Keys: whatever may change a fit's numbers changes its key, and nothing else does."""

import importlib
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import cloudpickle
import pytest
import torch
from torch import nn

from models import exponential_normal
from ppl_vi import Target, ground_truth
from ppl_vi.comparison.comparison import Comparison, FitSettings
from ppl_vi.comparison.run import compare_one
from ppl_vi.sweeps.keys import all_versions, code_digest, guide_key, model_key, source_digest
from ppl_vi.sweeps.plan import plan_of
from ppl_vi.sweeps.tasks import tasks_of

SOURCE = '''
"""A module."""
import pyro
import pyro.distributions as dist
import torch
from helper_of_keys import shift

SCALE = 1.0
OFFSET = torch.tensor([0.5])


def noise(factor=1.0):
    """Its scale."""
    return factor * SCALE


def model(x):
    """The model."""
    z = pyro.sample("z", dist.Exponential(1.0))  # a latent
    pyro.sample("x", dist.Normal(z + OFFSET[0] + shift(z), noise()), obs=x)
'''
HELPER = "def shift(z):\n    return 0.0 * z\n"


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Callable[..., types.ModuleType]]:
    """Writes the module with something replaced, and imports it anew."""
    sys.path.insert(0, str(tmp_path))

    def make(old: str = "", new: str = "", helper: str = HELPER) -> types.ModuleType:
        for name in ("module_of_keys", "helper_of_keys"):
            sys.modules.pop(name, None)
        assert old in SOURCE
        (tmp_path / "module_of_keys.py").write_text(SOURCE.replace(old, new) if old else SOURCE)
        (tmp_path / "helper_of_keys.py").write_text(helper)
        for cached in tmp_path.rglob("*.pyc"):
            cached.unlink()
        importlib.invalidate_caches()
        return importlib.import_module("module_of_keys")

    yield make
    sys.path.remove(str(tmp_path))
    for name in ("module_of_keys", "helper_of_keys"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Exponential(1.0)", "Exponential(2.0)"),
        ("dist.Normal(", "dist.Laplace("),
        ("SCALE = 1.0", "SCALE = 1.5"),
        ("tensor([0.5])", "tensor([0.25])"),
        ("factor=1.0", "factor=2.0"),
        ("return factor * SCALE", "return factor / SCALE"),
        ("z + OFFSET", "z - OFFSET"),
        ('"z", dist', '"y", dist'),
    ],
)
def test_a_change_of_the_code_or_of_what_it_refers_to_is_another_key(
    made: Callable[..., types.ModuleType], old: str, new: str
) -> None:
    before = code_digest(made().model)
    assert code_digest(made(old, new).model) != before
    assert code_digest(made().model) == before


def test_a_change_in_a_module_that_the_model_imports_from_is_another_key(
    made: Callable[..., types.ModuleType],
) -> None:
    before = code_digest(made().model)
    assert code_digest(made(helper=HELPER.replace("0.0", "1.0")).model) != before


@pytest.mark.parametrize(
    ("old", "new"),
    [("  # a latent", ""), ('"""The model."""', '"""Another."""'), ('"""A module."""', '"""Other words."""\n\n\n'),
     ('"""Its scale."""', '"""The noise."""')],
)  # fmt: skip
def test_comments_and_docstrings_change_no_key(made: Callable[..., types.ModuleType], old: str, new: str) -> None:
    assert code_digest(made(old, new).model) == code_digest(made().model)


def with_closure(scale: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: x * scale


def test_what_a_closure_holds_is_part_of_the_key() -> None:
    assert code_digest(with_closure(1.0)) == code_digest(with_closure(1.0))
    assert code_digest(with_closure(1.0)) != code_digest(with_closure(2.0))


def test_weights_of_a_module_are_part_of_the_key() -> None:
    torch.manual_seed(1)
    net = nn.Linear(2, 1)
    before = code_digest(net)
    assert code_digest(cloudpickle.loads(cloudpickle.dumps(net))) == before
    with torch.no_grad():
        net.weight += 1e-6
    assert code_digest(net) != before


def test_a_model_keeps_its_key_when_it_is_used_and_when_it_is_sent() -> None:
    data = torch.tensor([1.0, 2.0, 0.5])
    for target in (exponential_normal.target([0.5, 1.5]), Target.of(exponential_normal.model, (data[0],))):
        key, source = model_key(target), source_digest(target)
        truth = ground_truth(target)
        compare_one(Comparison(target, truth, FitSettings(num_steps=20, num_replicas=2, engine="batched"), ()), "gamma")
        assert (model_key(target), source_digest(target)) == (key, source)
        sent = cloudpickle.loads(cloudpickle.dumps(target))
        assert (model_key(sent), source_digest(sent)) == (key, source)


def test_data_and_what_only_the_density_shows_are_part_of_a_models_key() -> None:
    x = [0.5, 1.5]
    keys = {model_key(exponential_normal.target(values)) for values in (x, [0.5, 1.5000001], [0.5], [1.5, 0.5])}
    assert len(keys) == 4
    hidden = [1.0]  # held by an object whose class is a library's, in no attribute
    make = types.MappingProxyType({"scale": hidden}).__getitem__

    def model(x: torch.Tensor) -> None:
        import pyro
        import pyro.distributions as dist

        z = pyro.sample("z", dist.Exponential(1.0))
        pyro.sample("x", dist.Normal(z, make("scale")[0]), obs=x)

    before = model_key(Target.batch(model, (torch.tensor([1.0]),)))
    hidden[0] = 2.0
    assert model_key(Target.batch(model, (torch.tensor([1.0]),))) != before


def test_guides_by_name_and_guides_of_ones_own() -> None:
    assert guide_key("gamma") == guide_key("gamma") != guide_key("lognormal")
    assert guide_key(with_closure(1.0)) != guide_key(with_closure(2.0))


def test_every_setting_and_version_is_part_of_a_tasks_key() -> None:
    base = {"models": {"toy": exponential_normal.target([0.5])}, "guides": ["gamma"], "seed": [0, 1]}
    changes = [
        {}, {"objective": "stl"}, {"lr": 0.1}, {"num_steps": 10}, {"num_particles": 8}, {"engine": "batched"},
        {"num_draws": 99}, {"block": 1}, {"seed": [5, 6]}, {"guides": ["lognormal"]},
        {"models": {"other": exponential_normal.target([0.5])}},
    ]  # fmt: skip
    versions = all_versions()
    keys = [tasks_of(plan_of(base | change), versions)[0].key for change in changes]
    keys.append(tasks_of(plan_of(base), versions | {"torch": "1.0"})[0].key)
    assert len(set(keys)) == len(changes) + 1
    assert tasks_of(plan_of(base), all_versions())[0].key == keys[0]


def test_a_tasks_key_and_seed_do_not_depend_on_which_seeds_of_its_block_are_asked_for() -> None:
    base = {"models": {"toy": exponential_normal.target([0.5])}, "guides": ["gamma"], "block": 4}
    (part,) = tasks_of(plan_of(base | {"seed": [5, 7]}), {})
    (whole,) = tasks_of(plan_of(base | {"seed": "4:8"}), {})
    assert part.key == whole.key
    assert part.settings == whole.settings
    assert (part.settings.seed, part.settings.num_replicas, part.seeds) == (4, 4, (5, 7))
