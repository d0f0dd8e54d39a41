"""Images: what is loaded, how it is split and prepared, and that bad data are one clear line."""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from models import images
from models.images import MNIST_SHA256, Images, binarise, dequantise, load

ROOT = Path(__file__).resolve().parents[2]
TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = MNIST_SHA256


def rows(x: Tensor) -> list[tuple[float, ...]]:
    return sorted(map(tuple, x.tolist()))


def idx(array: np.ndarray) -> bytes:
    """The bytes of an idx file, as MNIST's page describes them."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


@pytest.fixture
def small_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """Seven and three random images in MNIST's format in `tmp_path`, two of the files packed, with their checksums."""
    draws = np.random.default_rng(0)
    arrays = {
        TRAIN_IMAGES: draws.integers(0, 256, (7, 28, 28)),
        TRAIN_LABELS: draws.integers(0, 10, 7),
        TEST_IMAGES: draws.integers(0, 256, (3, 28, 28)),
        TEST_LABELS: draws.integers(0, 10, 3),
    }
    for name, array in arrays.items():
        (tmp_path / name).write_bytes(idx(array))
        monkeypatch.setitem(MNIST_SHA256, name, hashlib.sha256(idx(array)).hexdigest())
    for name in (TRAIN_IMAGES, TEST_LABELS):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
        (tmp_path / name).unlink()
    return arrays


# ---- digits


def test_the_digits_are_split_once() -> None:
    digits = load("digits", seed=3)
    assert (digits.name, digits.shape, digits.height, digits.width) == ("digits", (8, 8), 8, 8)
    assert (digits.train.shape, digits.test.shape) == ((1297, 64), (500, 64))
    assert (digits.train.dtype, digits.test.dtype) == (torch.float32, torch.float32)
    assert (float(digits.train.min()), float(digits.train.max())) == (0.0, 1.0)

    from sklearn.datasets import load_digits

    theirs = load_digits()
    assert rows(torch.cat([digits.train, digits.test])) == rows(torch.tensor(theirs.data / 16).float())
    # each image has kept its label
    label_of = {tuple(image): label for image, label in zip(theirs.data.tolist(), theirs.target.tolist(), strict=True)}
    for x, labels in ((digits.train, digits.train_labels), (digits.test, digits.test_labels)):
        assert [label_of[tuple(image)] for image in (16 * x).tolist()] == labels.tolist()


def test_the_seed_decides_the_split_and_nothing_global_does() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = load("digits", seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again, other = load("digits", seed=3), load("digits", seed=4)
    assert torch.equal(first.test, again.test)
    assert not torch.equal(first.test, other.test)


def test_a_missing_scikit_learn_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ValueError, match=r"scikit-learn, which is missing: pip install scikit-learn$"):
        load("digits")


# ---- MNIST


@pytest.mark.parametrize("by_environment", [False, True])
def test_mnists_files_are_read(
    by_environment: bool, tmp_path: Path, small_mnist: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PPL_VI_DATA", str(tmp_path if by_environment else tmp_path / "elsewhere"))
    mnist = load("mnist", data_dir=None if by_environment else tmp_path)
    assert (mnist.name, mnist.shape) == ("mnist", (28, 28))
    np.testing.assert_array_equal((mnist.train * 255).round(), small_mnist[TRAIN_IMAGES].reshape(7, 784))
    np.testing.assert_array_equal((mnist.test * 255).round(), small_mnist[TEST_IMAGES].reshape(3, 784))
    np.testing.assert_array_equal(mnist.train_labels, small_mnist[TRAIN_LABELS])
    np.testing.assert_array_equal(mnist.test_labels, small_mnist[TEST_LABELS])


@pytest.mark.skipif("PPL_VI_DATA" not in os.environ, reason="MNIST is read from $PPL_VI_DATA, which is not set")
def test_mnist_itself() -> None:
    mnist = load("mnist")
    assert (mnist.train.shape, mnist.test.shape) == ((60_000, 784), (10_000, 784))
    # the mean pixel and the first labels, as published
    assert float(mnist.train.double().mean()) == pytest.approx(0.1307, abs=5e-5)
    assert mnist.train_labels[:8].tolist() == [5, 0, 4, 1, 9, 2, 1, 3]
    assert mnist.test_labels[:8].tolist() == [7, 2, 1, 0, 4, 1, 4, 9]


def test_mnist_that_is_nowhere_is_told_with_the_way_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PPL_VI_DATA", raising=False)
    with pytest.raises(
        ValueError, match=r"run scripts/fetch_mnist\.sh FOLDER, then pass --data-dir FOLDER .*or set PPL_VI"
    ):
        load("mnist")
    with pytest.raises(ValueError, match=r"neither .*train-images-idx3-ubyte nor .*\.gz is there: run scripts/fetch"):
        load("mnist", data_dir=tmp_path)
    assert os.access(ROOT / "scripts" / "fetch_mnist.sh", os.X_OK)


def flipped(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-5], "images-idx3-ubyte holds 2363 bytes where its header says 2368: get it anew"),
        (lambda content: content + b"\0", "holds 2369 bytes where its header says 2368"),
        (lambda content: content[:10], "holds 10 bytes where its header says"),
        (lambda content: b"", r"is no idx file of bytes with 3 axes: it starts $"),
        (lambda content: b"<html>not found</html>", "is no idx file of bytes with 3 axes: it starts 3c68746d"),
        (flipped, "is not MNIST's: sha256 [0-9a-f]{64}, expected [0-9a-f]{64}$"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("small_mnist")
def test_a_damaged_mnist_is_refused(damage: Callable[[bytes], bytes], message: str, tmp_path: Path) -> None:
    path = tmp_path / TEST_IMAGES
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=message) as error:
        load("mnist", data_dir=tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("small_mnist")
def test_a_truncated_gzip_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / f"{TRAIN_IMAGES}.gz"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz can't be read"):
        load("mnist", data_dir=tmp_path)


def test_the_script_asks_for_a_folder() -> None:
    done = subprocess.run([ROOT / "scripts" / "fetch_mnist.sh"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "usage: scripts/fetch_mnist.sh FOLDER\n")


# ---- anybody's arrays


@pytest.mark.parametrize("as_integers", [False, True])
@pytest.mark.parametrize(("size", "shape"), [((9,), (3, 3)), ((6,), (1, 6)), ((2, 4), (2, 4))])
def test_an_array_of_ones_own(size: tuple[int, ...], shape: tuple[int, int], as_integers: bool, tmp_path: Path) -> None:
    whole = np.random.default_rng(0).integers(0, 256, (11, *size))
    path = tmp_path / "faces.npy"
    np.save(path, whole.astype(np.uint8) if as_integers else whole / 255)
    found = load(str(path), seed=1)
    assert (found.name, found.shape, found.train_labels, found.test_labels) == ("faces", shape, None, None)
    assert (len(found.train), len(found.test)) == (9, 2)
    expected = torch.tensor(whole.reshape(11, -1) / 255).float()
    assert rows(torch.cat([found.train, found.test])) == rows(expected)
    assert torch.equal(load(str(path), seed=1).test, found.test)


def test_values_between_the_grey_levels_are_continuous(tmp_path: Path) -> None:
    x = np.arange(12).reshape(6, 2) / 255
    for name, array in (("whole", x * 255), ("grey", x), ("continuous", x + 0.4 / 255)):
        np.save(tmp_path / f"{name}.npy", array.round(9))
    levels = {name: load(str(tmp_path / f"{name}.npy")).levels for name in ("whole", "grey", "continuous")}
    assert levels == {"whole": 256, "grey": 256, "continuous": None}
    np.savez(tmp_path / "split.npz", train=x, test=x + 0.4 / 255)
    assert load(str(tmp_path / "split.npz")).levels is None
    assert load("digits").levels == 17


def test_black_and_white_integers_are_not_divided(tmp_path: Path) -> None:
    np.save(tmp_path / "bw.npy", np.eye(4, dtype=np.uint8))
    assert float(load(str(tmp_path / "bw.npy")).train.max()) == 1.0


def test_an_archive_with_a_split_keeps_it(tmp_path: Path) -> None:
    train, test = np.full((3, 2, 2), 255), np.full((2, 2, 2), 1)
    path = tmp_path / "own.npz"
    np.savez(path, train=train, test=test, train_labels=np.array([2, 0, 1]))
    found = load(str(path))
    assert torch.equal(found.train, torch.ones(3, 4))
    assert torch.equal(found.test, torch.full((2, 4), 1 / 255))  # on the scale of the training data
    assert found.train_labels.tolist() == [2, 0, 1]
    assert found.test_labels is None


def test_an_archive_without_a_split_is_split_with_its_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", x=np.arange(10)[:, None] / 10, labels=np.arange(10))
    found = load(str(tmp_path / "own.npz"), seed=5)
    assert torch.equal((found.train[:, 0] * 10).round().long(), found.train_labels)
    assert torch.equal((found.test[:, 0] * 10).round().long(), found.test_labels)
    assert sorted([*found.train_labels.tolist(), *found.test_labels.tolist()]) == list(range(10))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(4), r"images of one size, \(N, P\) or \(N, H, W\) and none of them 0, got \(4,\)"),
        (np.zeros((2, 3, 4, 1)), r"got \(2, 3, 4, 1\)"),
        (np.zeros((0, 4)), r"got \(0, 4\)"),
        (np.zeros((1, 4)), "holds 1 image: at least 2 are needed"),
        (np.array([[0.5, math.nan], [0.0, 1.0]]), "holds a value that is not finite: nan"),
        (np.array([[0.5, math.inf], [0.0, 1.0]]), "holds a value that is not finite: inf"),
        (np.array([[0.5, -0.1], [0.0, 1.0]]), r"values in \[0, 1\] or whole numbers from 0 to 255, got -0.1"),
        (np.array([[0.5, 1.0], [0.0, 1.001]]), r"got 0\.5 beside 1\.001"),
        (np.array([[5, 256], [0, 1]]), "got 256"),
        (np.zeros((2, 4), complex), "must hold real numbers, got complex128"),
        (np.array([["a", "b"]]), "must hold real numbers, got <U1"),
        (np.array([[None, 1]]), "can't be read as a NumPy file: Object arrays cannot be loaded"),
    ],
)
def test_a_bad_array_is_refused(array: np.ndarray, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.npy"
    np.save(path, array, allow_pickle=True)
    with pytest.raises(ValueError, match=message) as error:
        load(str(path))
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"train": np.eye(3)}, r"must hold either 'x' or both 'train' and 'test', got \['train'\]"),
        ({"x": np.eye(3), "train": np.eye(3), "test": np.eye(3)}, "must hold either"),
        ({"train": np.eye(3), "test": np.eye(4)}, r"one size, .*got \(3, 3\) and \(4, 4\)"),
        ({"x": np.eye(3), "labels": np.zeros(2, int)}, r"labels must be 3 whole numbers, got int64 of shape \(2,\)"),
        ({"x": np.eye(3), "labels": np.zeros(3)}, "labels must be 3 whole numbers, got float64"),
    ],
)
def test_a_bad_archive_is_refused(arrays: dict[str, np.ndarray], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        load(str(tmp_path / "bad.npz"))


@pytest.mark.parametrize("name", ["bad.npy", "bad.npz"])
@pytest.mark.parametrize("num_bytes", [0, 60, 150, 400])
def test_a_truncated_file_is_refused(name: str, num_bytes: int, tmp_path: Path) -> None:
    path = tmp_path / name
    np.save(path, np.eye(9)) if path.suffix == ".npy" else np.savez_compressed(path, x=np.eye(200))
    path.write_bytes(path.read_bytes()[:num_bytes])
    with pytest.raises(ValueError, match=r"bad\.np[yz] can't be read as a NumPy file"):
        load(str(path))


def test_a_name_that_is_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown images 'cifar'; there are digits, mnist, and paths ending in \.npy"):
        load("cifar")
    with pytest.raises(ValueError, match=r"there is no file .*gone\.npy"):
        load(str(tmp_path / "gone.npy"))


# ---- preparations


def test_binarised_pixels_have_the_probability_of_their_grey() -> None:
    grey = torch.tensor([0.0, 0.1, 0.5, 0.85, 1.0])
    num = 40_000
    drawn = binarise(grey.expand(num, 5), seed=1)
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    error = 5 * (grey * (1 - grey) / num).sqrt()  # 0 where black or white: exact
    assert bool(((drawn.mean(0) - grey).abs() <= error).all())


def test_dequantised_pixels_fill_their_level_evenly() -> None:
    levels, num = 17, 40_000
    k = torch.arange(levels).float()
    filled = dequantise((k / 16).expand(num, levels), levels, seed=2).double()
    assert (float(filled.min()), float(filled.max())) == pytest.approx((0, 1), abs=1e-4)
    u = filled * levels - k
    assert bool(((u >= -1e-5) & (u <= 1 + 1e-5)).all())
    # the mean 1/2 and variance 1/12 of a uniform number, 5 standard errors; var of the variance is 1/180
    assert float((u.mean(0) - 0.5).abs().max()) < 5 / math.sqrt(12 * num)
    assert float((u.var(0) - 1 / 12).abs().max()) < 5 / math.sqrt(180 * num)


@pytest.mark.parametrize("prepare", [binarise, lambda x, seed: dequantise(x, 256, seed)])
def test_a_preparation_is_the_seeds_alone(prepare: Callable[[Tensor, int], Tensor]) -> None:
    x = torch.arange(256).reshape(4, 64) / 255
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = prepare(x, 3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(prepare(x, 3), first)
    assert not torch.equal(prepare(x, 4), first)
    assert (first.dtype, first.shape, prepare(x.double(), 3).dtype) == (torch.float32, x.shape, torch.float64)
    torch.testing.assert_close(prepare(x.double(), 3).float(), first)  # the same draw in either precision


@pytest.mark.parametrize("bad", [1.5, -0.1, math.nan])
def test_a_preparation_refuses_what_is_no_grey(bad: float) -> None:
    x = torch.tensor([0.0, bad, 1.0])
    for prepare in (lambda: binarise(x, 0), lambda: dequantise(x, 17, 0)):
        with pytest.raises(ValueError, match=rf"x must be in \[0, 1\], got {bad}"):
            prepare()


def test_dequantising_refuses_what_is_between_two_levels() -> None:
    with pytest.raises(ValueError, match=r"x must be whole multiples of 1/16 for 17 grey levels, got 0\.4"):
        dequantise(torch.tensor([0.5, 0.4]), 17, 0)
    with pytest.raises(ValueError, match="there must be at least 2 grey levels, got 1"):
        dequantise(torch.zeros(3), 1, 0)


def test_images_tell_their_shape() -> None:
    two = Images("two", torch.zeros(1, 6), torch.zeros(1, 6), height=2, width=3)
    assert two.shape == (2, 3)
    assert images.MNIST_SIDE == 28
