"""A cache folder is used only where nobody else could have put anything into it."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from ppl_vi.runtime import caches
from ppl_vi.runtime.caches import is_usable
from ppl_vi.runtime.files import is_own, why_not_private

is_root = hasattr(os, "geteuid") and os.geteuid() == 0
OTHER = 12_345  # a user that is nobody here


@pytest.fixture(autouse=True)
def _nothing_said_yet() -> None:
    caches._say_once.cache_clear()


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o022, 0o077])
def test_a_missing_folder_is_made_for_its_owner_alone(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        assert is_usable(tmp_path / "cache" / "inner")
    finally:
        os.umask(before)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("cache", "cache/inner")] == [0o700, 0o700]


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757, 0o1777])
def test_a_folder_that_others_may_write_to_is_refused_with_one_line(
    mode: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(mode)
    with caplog.at_level(logging.WARNING):
        assert [is_usable(tmp_path / "cache") for _ in range(3)] == [False] * 3
    (line,) = caplog.messages
    assert f"a cache is not used, since others may write to '{tmp_path / 'cache'}'" in line
    (tmp_path / "cache").chmod(0o755)
    assert is_usable(tmp_path / "cache")


def test_a_folder_inside_one_that_others_may_write_to_is_refused_unless_that_is_sticky(tmp_path: Path) -> None:
    (tmp_path / "open" / "cache").mkdir(parents=True)
    (tmp_path / "open").chmod(0o777)
    assert why_not_private(tmp_path / "open" / "cache") == f"others may write to '{tmp_path / 'open'}'"
    (tmp_path / "open").chmod(0o1777)
    assert is_usable(tmp_path / "open" / "cache")


def test_a_link_is_judged_by_where_it_leads(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "link").symlink_to(tmp_path / "open")
    assert not is_usable(tmp_path / "link")


@pytest.mark.skipif(not is_root, reason="only root can give a folder away")
@pytest.mark.parametrize("given", ["parent", "parent/cache"])
def test_a_folder_of_another_user_is_refused(given: str, tmp_path: Path) -> None:
    cache = tmp_path / "parent" / "cache"
    assert is_usable(cache)
    os.chown(tmp_path / given, OTHER, OTHER)
    assert why_not_private(cache) == f"'{tmp_path / given}' belongs to another user"
    assert not is_usable(cache)


def test_a_file_of_another_user_or_a_link_is_not_ones_own(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    (tmp_path / "open").write_text("")
    (tmp_path / "open").chmod(0o666)
    assert [is_own(tmp_path / name) for name in ("a", "link", "open")] == [True, False, False]
    if is_root:
        os.chown(tmp_path / "a", OTHER, OTHER)
        assert not is_own(tmp_path / "a")


def test_what_can_not_be_made_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert not is_usable(tmp_path / "file" / "cache")
    assert not is_usable(tmp_path / ("a" * 300))
    assert not is_usable(Path("a\0b"))
