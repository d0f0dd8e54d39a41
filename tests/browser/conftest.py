"""A browser for each file of tests and a page for each test, which are skipped where there is no browser."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.browser.watched import launched, missing, watched_page

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless chromium, closed before the tests of another file begin (see `launched`)."""
    if reason := missing():
        pytest.skip(reason)
    with launched() as found:
        yield found


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A new page; the test fails on any error on its console or of its scripts, and on any use of the network."""
    with watched_page(browser) as found:
        yield found
