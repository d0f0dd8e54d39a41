"""Archives of plain arrays that carry a digest of all of their content, and that are read without trust in them.

A saved fit, saved reference draws and a checkpoint of a training are zip archives. The last of the file, in the place
that the zip format keeps for a comment, is a SHA-256 digest of all bytes before. It tells damage, not forgery: whoever
can write the file can write the digest. So `read_arrays` checks every size before it makes an array of that size, and
never runs code.
"""

from __future__ import annotations

import io
import math
import zipfile
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

MARK = b"ppl_vi sha256 "
SEAL_BYTES = len(MARK) + 2 * sha256().digest_size
# The record with which a zip archive ends; its last two bytes are the length of the comment that follows.
END_MARK, END_BYTES = b"PK\x05\x06", 22
STORED_FLAGS = 0x8 | 0x800  # sizes that follow the content, and names in UTF-8; encryption and the rest are refused


class DamagedFileError(ValueError):
    """A file is cut short, changed, or never was what it is taken for; the message names it and says what was found."""


def packed(arrays: dict[str, np.ndarray]) -> bytes:
    """An archive of arrays, with its digest."""
    held = io.BytesIO()
    np.savez(held, **arrays)  # type: ignore[arg-type]
    return sealed(held.getvalue())


def sealed(archive: bytes) -> bytes:
    """A zip archive without a comment, with its digest as the comment; zip's own programs read it as before."""
    assert _has_no_comment(archive)
    return archive[:-2] + SEAL_BYTES.to_bytes(2, "little") + MARK + sha256(archive).hexdigest().encode()


def unsealed(content: bytes) -> tuple[bytes, bool]:
    """The archive as it was before it was sealed, and whether it was.

    Raises:
        DamagedFileError: the content is not that of the digest, or no whole zip archive.
    """
    if content[-SEAL_BYTES:].startswith(MARK):
        archive = content[: -SEAL_BYTES - 2] + b"\0\0"
        if content[-SEAL_BYTES - 2 : -SEAL_BYTES] == SEAL_BYTES.to_bytes(2, "little") and _has_no_comment(archive):
            if sha256(archive).hexdigest().encode() == content[-2 * sha256().digest_size :]:
                return archive, True
            raise DamagedFileError("its content is not that of its digest")
    if not content.startswith(b"PK") or not _has_no_comment(content):
        raise DamagedFileError("it is no whole zip archive")
    return content, False


def _has_no_comment(archive: bytes) -> bool:
    return archive[-END_BYTES:].startswith(END_MARK) and archive.endswith(b"\0\0")


def content_of(path: Path) -> bytes:
    """All bytes of a regular file.

    Raises:
        FileNotFoundError: there is none.
        DamagedFileError: it is no regular file, or can't be read.
    """
    try:
        is_other = path.exists() and not path.is_file()
        if not is_other:
            return path.read_bytes()
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:  # a ValueError where the path holds a NUL character
        raise DamagedFileError(getattr(error, "strerror", None) or str(error)) from error
    raise DamagedFileError("it is no regular file")


def read_arrays(archive: bytes) -> dict[str, np.ndarray]:
    """The arrays of an archive.

    Nothing in it is decompressed, so it takes no more memory than the file is long.

    Raises:
        DamagedFileError: something in it is not as `packed` writes it.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as opened:
            members = opened.infolist()
            _check_members(members, len(archive))
            return {one.filename.removesuffix(".npy"): _array(opened.read(one)) for one in members}
    except Exception as error:  # a damaged archive raises errors of many kinds
        raise DamagedFileError(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__) from error


def _check_members(members: list[zipfile.ZipInfo], size: int) -> None:
    names = [one.filename for one in members]
    if len(set(names)) < len(names):
        raise DamagedFileError("two of its members have the same name")
    for one in members:
        plain = one.compress_type == zipfile.ZIP_STORED and not one.flag_bits & ~STORED_FLAGS
        if not plain or not one.filename.endswith(".npy") or one.compress_size != one.file_size:
            raise DamagedFileError(f"its member '{one.filename}' is no plain array")
    if sum(one.file_size for one in members) > size:
        raise DamagedFileError("its members are larger than the file")


def _array(content: bytes) -> np.ndarray:
    """An array in NumPy's format, whose size is that which its shape and dtype say."""
    file = io.BytesIO(content)
    if np.lib.format.read_magic(file) != (1, 0):
        raise DamagedFileError("an array is in another version of NumPy's format")
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
    rest = memoryview(content)[file.tell() :]
    if dtype.hasobject or dtype.itemsize == 0 or min(shape, default=0) < 0:
        raise DamagedFileError(f"an array has dtype {dtype} and shape {shape}")
    if math.prod(shape) * dtype.itemsize != len(rest):
        raise DamagedFileError(f"an array of dtype {dtype} and shape {shape} has {len(rest)} bytes")
    return np.frombuffer(rest, dtype).reshape(shape, order="F" if is_fortran else "C").copy()


def check_array(name: str, array: Any, dtype: np.dtype | type[np.generic], shape: tuple[int, ...]) -> None:
    """Checks an array's dtype and shape; of text any length is good.

    Raises:
        DamagedFileError: it is missing or of another dtype or shape.
    """
    if array is None:
        raise DamagedFileError(f"'{name}' is missing")
    same = array.dtype.kind == "U" if dtype is np.str_ else array.dtype == dtype
    if not same or array.shape != shape:
        expected = f"{np.dtype(dtype).name} of shape {shape}"
        raise DamagedFileError(f"'{name}' is {array.dtype.name} of shape {array.shape}, not {expected}")
