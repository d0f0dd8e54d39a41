"""Pages in a headless chromium that are watched: what goes wrong in one of them fails the test.

The tests of a page get `page` from `conftest.py`, open a file by `page.goto(path.as_uri())`, and ask
`serious_violations(page)`. A page that many tests share comes from `watched_page(browser)`, in a fixture of their
module.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PACKAGES = ("playwright", "axe_playwright_python")
COMMANDS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# The first as root in a container, where chromium's own sandbox cannot be made; the last for its small /dev/shm.
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage",
)  # fmt: skip
LOCAL = ("file:", "data:", "blob:", "about:")
WIDE = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}
SECONDS = 30


def executable() -> str | None:
    """The path of a chromium, or None."""
    return next((found for name in COMMANDS if (found := shutil.which(name))), None)


def missing() -> str | None:
    """What the tests in a browser lack here, in one line; None where nothing is missing."""
    if lacking := [name for name in PACKAGES if find_spec(name) is None]:
        return f"not tested in a browser: {' and '.join(lacking)} not installed (pip install -e '.[test]')"
    if executable() is None:
        return "not tested in a browser: no chromium on the PATH (apt-get install chromium)"
    return None


@contextmanager
def launched() -> Iterator[Browser]:
    """A headless chromium.

    While it runs, Playwright's synchronous interface has an event loop running in this thread, so no other test may run
    before it is closed: it belongs to a module, not to the session.
    """
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable(), args=OPTIONS)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def watched_page(browser: Browser) -> Iterator[Page]:
    """A new page without network; at its end it raises AssertionError with everything that went wrong in it.

    That is an error on the console or of a script, a crash, and a request for anything but a local file.
    """
    wrong: list[str] = []
    context = browser.new_context(viewport=WIDE, offline=True, reduced_motion="reduce")
    context.set_default_timeout(1000 * SECONDS)
    page = context.new_page()
    page.on("console", lambda message: wrong.append(f"console: {message.text}") if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(f"script: {error}"))
    page.on("crash", lambda _: wrong.append("the page crashed"))
    page.on("request", lambda one: wrong.append(f"request: {one.url}") if not one.url.startswith(LOCAL) else None)
    try:
        yield page
    finally:
        context.close()
    assert not wrong, "\n".join(wrong)


def serious_violations(page: Page) -> list[str]:
    """What axe calls serious or critical on the page as it is now: the rule, what it asks for, and where."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [
        f"{one['id']}: {one['help']}: {', '.join(str(node['target']) for node in one['nodes'])}"
        for one in found
        if one["impact"] in ("serious", "critical")
    ]
