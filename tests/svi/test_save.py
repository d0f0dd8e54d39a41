"""Saved fits come back bit for bit, and what is no fit of this target is refused."""

import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch

from models.exponential_normal import target as toy
from ppl_vi.runtime.archives import DamagedFileError, packed, unsealed
from ppl_vi.svi.fit import fit
from ppl_vi.svi.randomness import Replay, pseudo_random
from ppl_vi.svi.result import FORMAT_VERSION, Fit
from ppl_vi.target.isolation import isolated
from ppl_vi.target.target import Target

TARGET = toy([1.5, -3.0])
FAMILIES = ["gamma", "lognormal_mixture", "spline_flow", "AutoMultivariateNormal", "laplace", "pathfinder"]


def small(family: str, seed: int = 4) -> Fit:
    return fit(TARGET, family, num_steps=3, num_particles=4, num_replicas=2, seed=seed)


@pytest.fixture(scope="module")
def gamma() -> Fit:
    return small("gamma")


@pytest.fixture
def path(gamma: Fit, tmp_path: Path) -> Path:
    gamma.save(tmp_path / "deep" / "gamma.npz")
    return tmp_path / "deep" / "gamma.npz"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fit_comes_back_bit_for_bit(family: str, tmp_path: Path) -> None:
    found = small(family)
    found.save(tmp_path / "fit")
    back = Fit.load(tmp_path / "fit", toy([1.5, -3.0]))
    for name in ("family_name", "objective", "engine", "engine_reason", "seed", "seconds", "num_particles", "lr"):
        assert getattr(back, name) == getattr(found, name)
    for name in ("scope", "support_mismatch", "versions", "family"):
        assert getattr(back, name) == getattr(found, name)
    for name in ("steps", "elbo_history", "status", "stop_reason", "num_steps", "predicted_gain"):
        np.testing.assert_array_equal(getattr(back, name), getattr(found, name), strict=True)
    for ours, theirs in ((back.parameters, found.parameters), (back.initial, found.initial)):
        assert list(ours) == list(theirs)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert torch.equal(back.trajectory, found.trajectory)
    draws = found.draw(5, seed=2)
    assert torch.equal(back.draw(5, seed=2)["z"], draws["z"])
    assert torch.equal(back.log_prob(draws), found.log_prob(draws))


def test_a_guide_that_draws_its_structure_comes_back_with_the_structure_that_was_fitted(tmp_path: Path) -> None:
    """An autoregressive flow draws the order of the latents when it is made: one of 24 here."""

    def model(x: torch.Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
        pyro.sample("x", dist.Normal((z * torch.arange(1, 5)).sum(), 0.5), obs=x)

    target = Target(model, (torch.tensor([1.5], dtype=torch.float64),))
    found = fit(target, "AutoIAFNormal", num_steps=3, num_particles=4, num_replicas=2, seed=4)
    found.save(tmp_path / "fit")
    draws = found.draw(5, seed=2)["z"]
    assert torch.equal(Fit.load(tmp_path / "fit", target).draw(5, seed=2)["z"], draws)
    noise = pseudo_random(found.program.latent_draws, (1, 2, 5), torch.Generator().manual_seed(2))
    for replica in range(2):
        guide = found.guide(0, replica)
        for i in range(5):
            with isolated(target.dtype), Replay([n[0, replica, i] for n in noise]):
                trace = poutine.trace(guide).get_trace(*target.row(0))
            torch.testing.assert_close(trace.nodes["z"]["value"], draws[0, replica, i], rtol=1e-12, atol=1e-12)


def test_the_file_holds_plain_arrays_only(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert all(name.endswith(".npy") for name in archive.namelist())
    with np.load(path, allow_pickle=False) as file:
        assert all(file[name].dtype != object for name in file.files)
        assert json.loads(file["header"].tobytes())["family"] == "gamma"


def altered(path: Path, /, header: dict[str, object] | None = None, **changes: np.ndarray | None) -> Path:
    """The same file with other values in its header and other arrays, and with their digest."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files} | changes
    held = json.loads(arrays["header"].tobytes()) | (header or {})
    arrays["header"] = np.frombuffer(json.dumps(held).encode(), dtype=np.uint8)
    path.write_bytes(packed({name: array for name, array in arrays.items() if array is not None}))
    return path


def test_a_truncated_file_is_refused(path: Path) -> None:
    content = path.read_bytes()
    for length in (0, 1, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="is not a fit saved by ppl_vi, or is damaged"):
            Fit.load(path, TARGET)


def test_a_flipped_byte_is_noticed(path: Path) -> None:
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("trajectory.npy")
    content[info.header_offset + 200] ^= 0xFF  # inside the array: zip's checksum tells
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        Fit.load(path, TARGET)


@pytest.mark.parametrize("content", [b"", b"not a zip at all" * 50, np.random.default_rng(1).bytes(5000)])
def test_other_bytes_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "fit").write_bytes(content)
    with pytest.raises(ValueError, match="fit is not a fit saved by ppl_vi"):
        Fit.load(tmp_path / "fit", TARGET)


def test_a_foreign_archive_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "text", "w") as archive:
        archive.writestr("readme.txt", "hello")
    np.savez(tmp_path / "arrays.npz", header=np.frombuffer(b'{"format": "other"}', dtype=np.uint8))
    np.savez(tmp_path / "list.npz", header=np.frombuffer(b"[1, 2]", dtype=np.uint8))
    np.save(tmp_path / "bare.npy", np.arange(3))
    for name in ("text", "arrays.npz", "list.npz", "bare.npy"):
        with pytest.raises(ValueError, match=f"{name} is not a fit saved by ppl_vi"):
            Fit.load(tmp_path / name, TARGET)


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return (os.mkdir, (str(tmp_path / "sprung"),))

    np.savez(tmp_path / "trap.npz", header=np.array([Trap()], dtype=object))
    with pytest.raises(ValueError, match="is not a fit saved by ppl_vi"):
        Fit.load(tmp_path / "trap.npz", TARGET)
    assert not (tmp_path / "sprung").exists()


def test_another_version_target_or_family_is_told(path: Path) -> None:
    with pytest.raises(ValueError, match="was fitted to another target or other data: exponential_normal"):
        Fit.load(path, toy([1.5, -3.0000001]))
    with pytest.raises(ValueError, match=r"family 'gamma' has parameters .* the file"):
        Fit.load(altered(path, {"parameters": ["a", "b"]}), TARGET)
    with pytest.raises(ValueError, match=f"has format version 99; this ppl_vi reads {FORMAT_VERSION}"):
        Fit.load(altered(path, {"version": 99}), TARGET)


def test_no_file_is_no_fit(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no fit at"):
        Fit.load(tmp_path / "none", TARGET)


def test_a_save_that_fails_leaves_the_old_file(path: Path, gamma: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()

    def full(file: object, **arrays: np.ndarray) -> None:
        file.write(b"half of it")
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="no space left"):
        gamma.save(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "header",
    [
        {"family": 3},
        {"seed": 1.5},
        {"seed": 10**400},
        {"lr": float("nan")},
        {"num_particles": [4]},
        {"parameters": {"a": 1}},
        {"scope": {}},
        {"scope": {"a": []}},
        {"versions": None},
        {"target": None},
        {"learned": {"values": []}},
        {"dtype": "float32"},
        {"dtype": "os.system"},
    ],
)
def test_a_header_that_says_something_else_is_refused(header: dict[str, object], path: Path) -> None:
    with pytest.raises(ValueError, match=r"damaged|another target"):
        Fit.load(altered(path, header), TARGET)


@pytest.mark.parametrize(
    "arrays",
    [
        {"parameter_0": np.zeros((2, 2), dtype=np.float32)},
        {"parameter_0": np.zeros((2, 3))},
        {"parameter_1": np.zeros((1, 2))},
        {"parameter_1": None},
        {"parameter_2": np.zeros((2, 2))},
        {"initial_1": None},
        {"status": np.full((2, 2), "perfect")},
        {"status": np.full((2, 3), "converged")},
        {"status": np.zeros((2, 2))},
        {"status": np.empty((2, 0), dtype="U9")},
        {"trajectory": np.zeros((3, 2, 2, 3))},
        {"trajectory": np.zeros(0)},
        {"steps": np.zeros(3)},
        {"elbo_history": np.zeros((3, 2, 1))},
        {"elbo_history": np.zeros((3, 2, 2), dtype=np.int64)},
        {"num_steps": None},
        {"predicted_gain": np.zeros((2, 2, 1))},
        {"learned_0": np.zeros(3)},
        {"header": np.zeros((2, 2))},
        {"header": np.frombuffer(b"[" * 100_000, dtype=np.uint8)},
    ],
    ids=str,
)
def test_arrays_of_other_shapes_or_dtypes_are_refused(arrays: dict[str, np.ndarray | None], path: Path) -> None:
    if "header" in arrays:
        path.write_bytes(packed(arrays))
    with pytest.raises(DamagedFileError, match="is not a fit saved by ppl_vi, or is damaged"):
        Fit.load(path if "header" in arrays else altered(path, **arrays), TARGET)


def test_a_file_without_a_digest_is_loaded_with_a_line_in_the_log(
    path: Path, gamma: Fit, caplog: pytest.LogCaptureFixture
) -> None:
    """As the files of version 0.1.0."""
    Fit.load(path, TARGET)
    assert caplog.messages == []
    path.write_bytes(unsealed(path.read_bytes())[0])
    assert torch.equal(Fit.load(path, TARGET).theta, gamma.theta)
    (line,) = caplog.messages
    assert f"{path} has no digest" in line


@pytest.mark.parametrize("name", ["evil:family", "sys:exit", "builtins:input", "os:getcwd", "evil", "AutoDelta", ""])
def test_no_code_that_a_file_names_is_run_unless_the_caller_allows_it(
    name: str, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evil.py").write_text("import os\nos.mkdir('sprung')\nfrom ppl_vi.guides import FAMILIES\n"
                                      "family = FAMILIES['gamma']\n")  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    altered(path, {"family": name})
    with pytest.raises(ValueError, match=r"give it by family=.* or let a file that you trust import it"):
        Fit.load(path, TARGET)
    assert not Path("sprung").exists()
    assert Fit.load(path, TARGET, "gamma").family_name == name
    if name == "evil:family":
        Fit.load(path, TARGET, import_family=True)
        assert Path("sprung").exists()


def test_damaged_files_are_one_kind_of_error_and_never_other_numbers(path: Path) -> None:
    """Three hundred of them; `benchmarks.faults` tries thousands."""
    content, generator = path.read_bytes(), np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(content)
        begin, length = generator.integers(len(content)), generator.integers(1, 200)
        match generator.integers(4):
            case 0:
                damaged[begin] ^= 1 << generator.integers(8)
            case 1:
                damaged = damaged[:begin]
            case 2:
                damaged[begin : begin + length] = b""
            case _:
                damaged[begin : begin + length] = generator.bytes(length)
        path.write_bytes(damaged)
        with pytest.raises(DamagedFileError):
            Fit.load(path, TARGET)
