"""The watch over pages: what goes wrong in a page is told, and the browser leaves nothing behind."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.browser import watched
from tests.browser.watched import launched, missing, serious_violations, watched_page

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

GOOD = '<!doctype html><html lang="en"><title>A page</title><main><h1>A page</h1>{}</main></html>'


def opened(page: Page, folder: Path, body: str) -> None:
    """Writes a page with this body, and opens it."""
    file = folder / "page.html"
    file.write_text(GOOD.format(body), encoding="utf-8")
    page.goto(file.as_uri())


def test_a_good_page_passes(page: Page, tmp_path: Path) -> None:
    opened(page, tmp_path, '<p>Text</p><img alt="a dot" src="data:image/gif;base64,R0lGODlhAQABAAAAACw=">')
    assert page.title() == "A page"
    assert serious_violations(page) == []


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("<script>console.error('went wrong')</script>", "console: went wrong"),
        ("<script>throw new Error('went wrong')</script>", "script: went wrong"),
        ("<script src='other.js'></script>", "console: .*FILE_NOT_FOUND"),
        ("<img alt='' src='http://localhost:1/a.png'>", "request: http://localhost:1/a.png"),
        ("<script>fetch('https://localhost:1/').catch(() => 0)</script>", "request: https://localhost:1/"),
    ],
)
def test_what_goes_wrong_in_a_page_is_told(browser: Browser, tmp_path: Path, body: str, told: str) -> None:
    with pytest.raises(AssertionError, match=told), watched_page(browser) as page:
        opened(page, tmp_path, body)


def test_a_picture_without_words_is_a_violation(page: Page, tmp_path: Path) -> None:
    opened(page, tmp_path, '<img src="data:image/gif;base64,R0lGODlhAQABAAAAACw=">')
    assert serious_violations(page) == ["image-alt: Images must have alternative text: ['img']"]


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched, "PACKAGES", ())
    monkeypatch.setattr(watched, "COMMANDS", ("no-such-browser",))
    assert missing() == "not tested in a browser: no chromium on the PATH (apt-get install chromium)"
    monkeypatch.setattr(watched, "PACKAGES", ("no_such_package",))
    assert (missing() or "").startswith("not tested in a browser: no_such_package not installed")


@pytest.mark.skipif(missing() is not None, reason=missing() or "")
def test_a_closed_browser_leaves_no_event_loop_behind() -> None:
    """In a thread of its own, because the browser of this file may be open in this one."""
    found: list[str] = []

    def work() -> None:
        with launched() as browser:
            browser.new_page()
        try:
            asyncio.get_running_loop()
        except RuntimeError as error:
            found.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == ["no running event loop"]
