"""Archives: what they hold comes back, and whatever else is read is one kind of error and takes no memory."""

from __future__ import annotations

import io
import os
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ppl_vi.runtime.archives import DamagedFileError, content_of, packed, read_arrays, sealed, unsealed

ARRAYS = {
    "real": np.linspace(-1, 2, 24).reshape(2, 3, 4),
    "turned": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    "text": np.array([["converged", "α"], ["", "x"]]),
    "none": np.empty((0, 5), dtype=np.int64),
}
CONTENT = packed(ARRAYS)


def test_arrays_come_back_bit_for_bit_and_numpy_reads_them_too(tmp_path: Path) -> None:
    archive, has_digest = unsealed(CONTENT)
    assert has_digest
    (tmp_path / "a.npz").write_bytes(CONTENT)
    with np.load(tmp_path / "a.npz") as numpys:
        for back in (read_arrays(archive), dict(numpys)):
            assert list(back) == list(ARRAYS)
            for name, array in ARRAYS.items():
                np.testing.assert_array_equal(back[name], array, strict=True)


def test_every_flipped_bit_and_every_cut_is_noticed() -> None:
    for place in range(len(CONTENT)):
        damaged = bytearray(CONTENT)
        damaged[place] ^= 1 << place % 8
        for content in (bytes(damaged), CONTENT[:place]):
            with pytest.raises(DamagedFileError):
                unsealed(content)


@pytest.mark.parametrize(
    "changed",
    [
        lambda content: content + b"x",
        lambda content: b"x" + content,
        lambda content: content + content,
        lambda content: content[:-1],
        lambda content: b"",
        lambda content: b"PK",
    ],
)
def test_what_is_added_or_missing_is_noticed(changed: Callable[[bytes], bytes]) -> None:
    with pytest.raises(DamagedFileError):
        unsealed(changed(CONTENT))


def zipped(members: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", compression) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return held.getvalue()


def npy(header: str, content: bytes) -> bytes:
    """An array in NumPy's format, whose header may say anything."""
    text = header.encode() + b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + content


def described(shape: str, dtype: str = "<f8", order: str = "False") -> str:
    return f"{{'descr': '{dtype}', 'fortran_order': {order}, 'shape': {shape}, }}"


@pytest.mark.parametrize(
    "member",
    [
        npy(described("(100000000000,)"), bytes(80)),
        npy(described("(9,)"), bytes(80)),
        npy(described("(-10,)"), bytes(80)),
        npy(described("(10,)", "|O"), bytes(80)),
        npy(described("(10,)", "<U0"), bytes(0)),
        npy(described("(10,)", "nonsense"), bytes(80)),
        npy("{'shape': ()}", bytes(80)),
        npy("[" * 1000, bytes(80)),
        npy("9" * 9000, bytes(80)),
        npy(described("(10,)"), bytes(80)).replace(b"\x01\x00", b"\x03\x00", 1),
        b"",
        b"\x93NUMPY",
    ],
)
def test_an_array_that_is_not_what_its_header_says_is_refused_before_memory_is_taken(member: bytes) -> None:
    archive = zipped([("a.npy", member)])
    tracemalloc.start()
    try:
        with pytest.raises(DamagedFileError):
            read_arrays(archive)
        assert tracemalloc.get_traced_memory()[1] < 2**24  # the parser takes some MB, the array would take 80 or more
    finally:
        tracemalloc.stop()


def test_bombs_doubles_and_other_members_are_refused() -> None:
    good = npy(described("(10,)"), bytes(80))
    huge = npy(described("(25000000,)"), bytes(200_000_000))
    bomb = zipped([("a.npy", huge)], zipfile.ZIP_DEFLATED)
    assert len(bomb) < 2**20
    with pytest.warns(UserWarning, match="Duplicate name"):
        double = zipped([("a.npy", good), ("a.npy", good)])
    tracemalloc.start()
    for archive in (bomb, double, zipped([("a.txt", good)]), zipped([("a.npy", good)], zipfile.ZIP_BZIP2)):
        with pytest.raises(DamagedFileError):
            read_arrays(archive)
    assert tracemalloc.get_traced_memory()[1] < 2**24  # the parser takes some MB, the array would take 80 or more
    tracemalloc.stop()
    assert list(read_arrays(zipped([("a.npy", good)]))) == ["a"]


def test_members_that_overlap_are_refused() -> None:
    """Many entries for the same bytes: each is small, all together are larger than the file."""
    archive = bytearray(zipped([("a.npy", npy(described("(1000,)"), bytes(8000)))]))
    begin, length = archive.index(b"PK\x01\x02"), archive.index(b"PK\x05\x06") - archive.index(b"PK\x01\x02")
    entry = bytes(archive[begin : begin + length])
    entries = b"".join(entry.replace(b"a.npy", b"%c.npy" % name) for name in b"abcdefgh")
    end = bytearray(archive[begin + length :])
    end[8:12], end[12:16] = (8).to_bytes(2, "little") * 2, len(entries).to_bytes(4, "little")
    with pytest.raises(DamagedFileError, match="larger than the file"):
        read_arrays(bytes(archive[:begin]) + entries + bytes(end))


def test_an_archive_without_a_digest_says_so() -> None:
    plain, has_digest = unsealed(unsealed(CONTENT)[0])
    assert not has_digest
    assert sealed(plain) == CONTENT


def test_what_is_no_regular_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # reading it would wait for ever
    for path in (tmp_path, tmp_path / "pipe", tmp_path / ("a" * 300), Path("a\0b"), Path("/dev/zero")):
        with pytest.raises(DamagedFileError):
            content_of(path)
    with pytest.raises(FileNotFoundError):
        content_of(tmp_path / "none")
