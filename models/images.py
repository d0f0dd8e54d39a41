"""Images to train a variational autoencoder on, as numbers in [0, 1]: scikit-learn's digits, MNIST, or a user's array.

Nothing is downloaded here. Sources: the digits are the test set of Alpaydin and Kaynak (1998), Optical recognition of
handwritten digits; MNIST is LeCun, Bottou, Bengio and Haffner (1998), Gradient-based learning applied to document
recognition.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

NUM_DIGITS_TEST = 500  # digits that are held back as test data
GREYS = 256  # grey levels of images in bytes
DIGITS_LEVELS = 17  # grey levels of scikit-learn's digits
POINTS_PER_TEST_POINT = 5  # one in five points of an array that comes without a split is a test point
MNIST_SIDE = 28  # pixels along each side of an image

# SHA-256 of each of MNIST's files after decompression.
MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
HOW_TO_GET_MNIST = (
    "run scripts/fetch_mnist.sh FOLDER, then pass --data-dir FOLDER (load: data_dir=FOLDER) or set PPL_VI_DATA"
)
# What NumPy and gzip raise where a file is damaged or of another kind.
UNREADABLE = (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True, eq=False)
class Images:
    """Images of one size, split into training and test data.

    Attributes:
        name: shown in tables.
        train: `(N, height * width)`, single precision, in [0, 1].
        test: the same for the data that are held back.
        height: height of an image in pixels.
        width: width of an image in pixels.
        train_labels: whole numbers `(N,)`, or None.
        test_labels: the same of the test data.
        levels: the number of grey levels; each pixel is a whole multiple of 1 / (levels - 1). None where pixels are
            continuous.
    """

    name: str
    train: Tensor
    test: Tensor
    height: int
    width: int
    train_labels: Tensor | None = None
    test_labels: Tensor | None = None
    levels: int | None = GREYS

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        return self.height, self.width


def load(name: str, *, data_dir: Path | None = None, seed: int = 0) -> Images:
    """Loads images by name or from a file.

    Args:
        name: "digits" (8x8 pixels, 1,297 for training and 500 for the test), "mnist" (28x28 pixels, 60,000 and 10,000),
            or the path of a `.npy` or `.npz` file with arrays of shape `(N, P)` or `(N, H, W)`, whose values are in
            [0, 1] or whole numbers up to 255. An `.npz` file holds either `x` and perhaps `labels`, or `train` and
            `test` and perhaps `train_labels` and `test_labels`.
        data_dir: where MNIST's four files are, packed by gzip or not; $PPL_VI_DATA by default.
        seed: the seed by which data are shuffled that come without a split into training and test data. MNIST comes
            with one.

    Raises:
        ValueError: an unknown name, or data that are missing or damaged, in one line.
    """
    if name == "digits":
        return _digits(seed)
    if name == "mnist":
        return _mnist(data_dir)
    path = Path(name)
    if path.suffix not in {".npy", ".npz"}:
        raise ValueError(f"unknown images '{name}'; there are digits, mnist, and paths ending in .npy or .npz")
    return _from_file(path, seed)


# ---- preparations


def binarise(x: Tensor, seed: int) -> Tensor:
    """Images in black and white: each pixel is drawn once, and is 1 with probability x.

    Source: Salakhutdinov and Murray (2008), On the quantitative analysis of deep belief networks.

    Args:
        x: in [0, 1].
        seed: the seed of the draw; the same images and seed always give the same pixels.
    """
    _check_range(x)
    return (_uniform(x, seed) < x).to(x.dtype)


def dequantise(x: Tensor, levels: int, seed: int) -> Tensor:
    """Fills the gaps between grey levels with uniform noise: (k + u) / levels, k = (levels - 1) x, u ~ Uniform(0, 1).

    The result lies in [0, 1]. Its log density minus log(levels) for each pixel is, on average over the noise, a lower
    bound on the log probability of the discrete image, nats.

    Source: Theis, van den Oord and Bethge (2016), A note on the evaluation of generative models.

    Args:
        x: in [0, 1], whole multiples of 1 / (levels - 1).
        levels: number of grey levels: 17 for the digits, 256 for MNIST.
        seed: of the noise.

    Raises:
        ValueError: x lies outside [0, 1] or between two levels, or there are fewer than two.
    """
    if levels < 2:
        raise ValueError(f"there must be at least 2 grey levels, got {levels}")
    _check_range(x)
    scaled = x.double() * (levels - 1)
    level = scaled.round()
    between = _between(x, levels)
    if bool(between.any()):
        raise ValueError(
            f"x must be whole multiples of 1/{levels - 1} for {levels} grey levels, got {x[between][0]:.6g}"
        )
    return ((level + _uniform(scaled, seed)) / levels).to(x.dtype)


def _between(x: Tensor, levels: int) -> Tensor:
    """Whether each x lies between two grey levels."""
    scaled = x.double() * (levels - 1)
    return (scaled - scaled.round()).abs() > 1e-3  # single precision moves 255 x by 2e-5


def _uniform(x: Tensor, seed: int) -> Tensor:
    """Uniform numbers on [0, 1) in the shape of x, in double precision whatever the dtype of x, so that draws agree."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(x.shape, generator=generator, dtype=torch.float64).to(x.device)


def _check_range(x: Tensor) -> None:
    wrong = ~((x >= 0) & (x <= 1))  # NaN compares false
    if bool(wrong.any()):
        raise ValueError(f"x must be in [0, 1], got {x[wrong][0].item():.6g}")


# ---- digits


def _digits(seed: int) -> Images:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ValueError("the digits are part of scikit-learn, which is missing: pip install scikit-learn") from error
    data, labels = load_digits(return_X_y=True)
    x = torch.as_tensor(data / 16).float()
    return _split("digits", x, torch.as_tensor(labels), (8, 8), NUM_DIGITS_TEST, seed, DIGITS_LEVELS)


def _split(
    name: str,
    x: Tensor,
    labels: Tensor | None,
    shape: tuple[int, int],
    num_test: int,
    seed: int,
    levels: int | None,
) -> Images:
    """Shuffles the points, and makes the last `num_test` of them the test data."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    train, test = order[:-num_test], order[-num_test:]
    train_labels, test_labels = (None, None) if labels is None else (labels[train], labels[test])
    return Images(name, x[train], x[test], *shape, train_labels, test_labels, levels)


# ---- MNIST


def _mnist(data_dir: Path | None) -> Images:
    folder = data_dir or os.environ.get("PPL_VI_DATA")
    if not folder:
        raise ValueError(f"where MNIST is, was not told: {HOW_TO_GET_MNIST}")
    train, train_labels, test, test_labels = (_idx(Path(folder), name) for name in MNIST_SHA256)
    x, x_test = (torch.as_tensor(one).flatten(1).float() / 255 for one in (train, test))
    labels, labels_test = (torch.as_tensor(one).long() for one in (train_labels, test_labels))
    return Images("mnist", x, x_test, MNIST_SIDE, MNIST_SIDE, labels, labels_test)


def _idx(folder: Path, name: str) -> np.ndarray:
    """The array in one of MNIST's files.

    A file holds the bytes 0, 0, 8 (which stands for bytes) and the number of axes, then the lengths of the axes as
    big-endian integers of 4 bytes, then the numbers.
    """
    content = _content(folder, name)
    num_axes = 3 if "idx3" in name else 1
    start = 4 * (1 + num_axes)
    header = np.frombuffer(content[:start].ljust(start, b"\0"), ">u4").tolist()
    if header[0] != 0x0800 + num_axes:
        raise ValueError(f"{folder / name} is no idx file of bytes with {num_axes} axes: it starts {content[:4].hex()}")
    expected = start + math.prod(header[1:])
    if len(content) != expected:
        raise ValueError(f"{folder / name} holds {len(content)} bytes where its header says {expected}: get it anew")
    found = hashlib.sha256(content).hexdigest()
    if found != MNIST_SHA256[name]:
        raise ValueError(f"{folder / name} is not MNIST's: sha256 {found}, expected {MNIST_SHA256[name]}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(header[1:]).copy()


def _content(folder: Path, name: str) -> bytes:
    plain, packed = folder / name, folder / f"{name}.gz"
    path = plain if plain.is_file() else packed
    if not path.is_file():
        raise ValueError(f"neither {plain} nor {packed.name} is there: {HOW_TO_GET_MNIST}")
    try:
        return path.read_bytes() if path is plain else gzip.decompress(path.read_bytes())
    except UNREADABLE as error:
        raise ValueError(f"{path} can't be read: {error}") from error


# ---- anybody's arrays


def _from_file(path: Path, seed: int) -> Images:
    arrays = _arrays(path)
    name = path.stem
    if "x" in arrays:
        (x,), shape = _pixels(path, arrays["x"])
        if len(x) < 2:
            raise ValueError(f"{path} holds {len(x)} image: at least 2 are needed, one of them to test")
        labels = _labels(path, arrays.get("labels"), len(x))
        return _split(name, x, labels, shape, max(1, len(x) // POINTS_PER_TEST_POINT), seed, _levels(x))
    (train, test), shape = _pixels(path, arrays["train"], arrays["test"])
    train_labels = _labels(path, arrays.get("train_labels"), len(train))
    test_labels = _labels(path, arrays.get("test_labels"), len(test))
    return Images(name, train, test, *shape, train_labels, test_labels, _levels(train, test))


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """What the file holds, by name: `x`, or `train` and `test`, and perhaps labels."""
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    try:
        with path.open("rb") as file:  # NumPy leaves a damaged archive open
            loaded = np.load(file, allow_pickle=False)
            arrays = {"x": loaded} if isinstance(loaded, np.ndarray) else {key: loaded[key] for key in loaded.files}
    except UNREADABLE as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path} can't be read as a NumPy file: {reason}") from error
    if ("x" in arrays) == ({"train", "test"} <= arrays.keys()):
        raise ValueError(f"{path} must hold either 'x' or both 'train' and 'test', got {sorted(arrays)}")
    return arrays


def _pixels(path: Path, *arrays: np.ndarray) -> tuple[list[Tensor], tuple[int, int]]:
    """The arrays as `(N, P)` in [0, 1], all on one scale, and the height and width of their images."""
    kinds = {array.dtype.kind for array in arrays}
    if not kinds <= set("buif"):
        raise ValueError(f"{path} must hold real numbers, got {arrays[0].dtype}")
    sizes = {array.shape[1:] for array in arrays}
    if len(sizes) != 1 or any(array.ndim not in {2, 3} or array.size == 0 for array in arrays):
        shapes = " and ".join(str(array.shape) for array in arrays)
        raise ValueError(f"{path} must hold images of one size, (N, P) or (N, H, W) and none of them 0, got {shapes}")
    largest = max(float(array.max()) for array in arrays)
    for array in arrays:
        _check_values(path, array, largest)
    scale = 255 if largest > 1 else 1
    pixels = [torch.as_tensor(array.reshape(len(array), -1) / scale).float() for array in arrays]
    return pixels, _shape(sizes.pop())


def _levels(*pixels: Tensor) -> int | None:
    """256 grey levels, those of bytes, or None if a value lies between two of them."""
    return None if any(bool(_between(x, GREYS).any()) for x in pixels) else GREYS


def _check_values(path: Path, array: np.ndarray, largest: float) -> None:
    """Refuses values that are neither all in [0, 1] nor all whole numbers from 0 to 255.

    Without this check a single value slightly above 1 would make every image be divided by 255, and so nearly black.
    """
    if not np.isfinite(array).all():
        raise ValueError(f"{path} holds a value that is not finite: {array[~np.isfinite(array)][0]}")
    allowed = (array >= 0) & (array <= 255)
    if largest > 1:
        allowed &= array == np.round(array)
    if not allowed.all():
        got = f"{array[~allowed][0]:g}" + (f" beside {largest:g}" if 1 < largest <= 255 else "")
        raise ValueError(f"{path} must hold values in [0, 1] or whole numbers from 0 to 255, got {got}")


def _shape(size: tuple[int, ...]) -> tuple[int, int]:
    """Height and width of images of `(H, W)` or `(P,)` pixels; the latter are taken for a square, or else for a row."""
    if len(size) == 2:
        return size[0], size[1]
    side = math.isqrt(size[0])
    return (side, side) if side * side == size[0] else (1, size[0])


def _labels(path: Path, labels: np.ndarray | None, num: int) -> Tensor | None:
    if labels is None:
        return None
    if labels.shape != (num,) or labels.dtype.kind not in "bui":
        raise ValueError(f"{path}: labels must be {num} whole numbers, got {labels.dtype} of shape {labels.shape}")
    return torch.as_tensor(labels.astype(np.int64))
