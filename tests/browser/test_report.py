"""The page of `ppl-vi report` in a browser: tables sort and filter, figures follow, themes and a phone's width work."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

from ppl_vi.page.render import html_of
from ppl_vi.page.results import page_of
from ppl_vi.report.page_data import data_of, to_text
from ppl_vi.sweeps.page import page_of as page_of_sweep
from tests.browser.watched import PHONE, WIDE, missing, serious_violations, watched_page
from tests.page.results import HOSTILE, measured_draws, small_comparison, small_store

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, ViewportSize

pytestmark = pytest.mark.skipif(missing() is not None, reason=missing() or "")
READY = "html[data-figures=ready]"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    held = json.loads(to_text(data_of(small_comparison())))
    draws = json.loads(to_text(data_of(measured_draws().comparison)))
    pages = {
        "comparison": page_of(held["records"], held),
        "draws": page_of(draws["records"], draws),
        "sweep": page_of_sweep(small_store(folder / "sweep.db", [f"guide-{i}" for i in range(6)], (0.01, 0.1, 1.0))),
    }
    for name, page in pages.items():
        (folder / f"{name}.html").write_text(html_of(page), encoding="utf-8")
    return {name: folder / f"{name}.html" for name in pages}


@pytest.fixture(scope="module", params=["comparison", "sweep"])
def opened(request: pytest.FixtureRequest, browser: Browser, files: dict[str, Path]) -> Iterator[Page]:
    with watched_page(browser) as page:
        show(page, files[request.param])
        yield page


def show(page: Page, file: Path) -> None:
    """Opens a file, and waits for its figures."""
    page.goto(file.as_uri())
    page.wait_for_selector(READY)


def see_all(page: Page) -> None:
    """Unfolds everything and scrolls through the page, so that all figures are drawn."""
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    for place in page.locator(".plot").all():
        place.scroll_into_view_if_needed()
        place.locator(".main-svg").first.wait_for()


def first_column(page: Page) -> list[str]:
    """The row headings of the first table that are shown."""
    rows = page.locator("#s1-table tbody tr:not([hidden]) th")
    return [text.strip("¹²³⁴ ") for text in rows.all_text_contents()]


def keys(page: Page, column: int) -> list[Any]:
    """What a column is sorted by; None where a value is missing."""
    found: list[Any] = page.evaluate(
        "(i) => [...document.querySelectorAll('#s1-table tbody tr')].map((row) => row.cells[i].dataset.key ?? null)",
        column,
    )
    return [None if one is None else float(one) for one in found]


@pytest.mark.parametrize("column", [2, 3])
def test_a_heading_sorts_by_number_with_what_is_missing_last(opened: Page, column: int) -> None:
    heading = opened.locator("#s1-table thead th").nth(column)
    for direction, sign in (("ascending", 1), ("descending", -1)):
        heading.locator("button").focus()
        opened.keyboard.press("Enter")
        assert heading.get_attribute("aria-sort") == direction
        found = keys(opened, column)
        known = [one for one in found if one is not None]
        assert known == sorted(known, key=lambda value: sign * value)
        assert found == [*known, *[None] * (len(found) - len(known))]
    others = opened.locator("#s1-table thead th[aria-sort='none']").count()
    assert others == opened.locator("#s1-table thead th").count() - 1


def test_names_sort_as_text(opened: Page) -> None:
    opened.locator("#s1-table thead button").first.click()
    names = first_column(opened)
    expected: list[str] = opened.evaluate(
        "(names) => names.sort(new Intl.Collator(undefined, { numeric: true }).compare)", [*names]
    )
    assert [one.lower() for one in names] == [one.lower() for one in expected]


def test_the_filter_leaves_the_rows_that_have_all_words(opened: Page) -> None:
    every = first_column(opened)
    field = opened.locator("input[data-table='s1-table']")
    field.fill("GUIDE-3 0.1" if "guide-3" in every else "conv gam")
    left = first_column(opened)
    assert set(left) in ({"guide-3"}, {"gamma"})
    assert 0 < len(left) < len(every)
    assert opened.locator(".count[data-table='s1-table']").text_content() == f"{len(left)} of {len(every)} rows"
    field.fill("")
    assert len(first_column(opened)) == len(every)


def test_more_columns_are_shown_on_demand(browser: Browser, files: dict[str, Path]) -> None:
    with watched_page(browser) as page:
        show(page, files["comparison"])
        more = page.locator("#s1-table thead th.more")
        assert more.count() > 3
        assert not more.first.is_visible()
        page.get_by_role("button", name="All columns").click()
        assert more.first.is_visible()
        assert page.locator("#s1-table thead th", has_text="k-hat").count() == 1


def test_a_guides_lines_are_hidden_and_shown(opened: Page) -> None:
    see_all(opened)
    chip = opened.locator(".chips button").first
    number = int(chip.get_attribute("data-line") or -1)
    shown = """(number) => [...document.querySelectorAll('figure.lines .plot')].flatMap((one) => one.data)
        .filter((trace) => trace.meta === number && trace.visible !== false).length"""
    before = opened.evaluate(shown, number)
    assert before > 1
    chip.click()
    assert opened.evaluate(shown, number) == 0
    chip.click()
    assert opened.evaluate(shown, number) == before


def test_the_theme_reaches_page_and_figures(opened: Page) -> None:
    see_all(opened)
    ink = "getComputedStyle(document.body).color"
    ticks = "getComputedStyle(document.querySelector('.plot .xtick text')).fill"
    assert opened.evaluate(ink) == opened.evaluate(ticks) == "rgb(29, 35, 43)"
    opened.get_by_role("button", name="Dark").click()
    opened.wait_for_function(f"{ticks} === 'rgb(230, 233, 238)'")
    assert opened.evaluate(ink) == "rgb(230, 233, 238)"
    opened.get_by_role("button", name="Dark").click()
    opened.wait_for_function(f"{ticks} === 'rgb(29, 35, 43)'")


@pytest.mark.parametrize(
    ("name", "scheme", "size"),
    [
        ("comparison", "dark", WIDE),
        ("comparison", "light", PHONE),
        ("sweep", "light", WIDE),
        ("sweep", "dark", PHONE),
        ("draws", "dark", PHONE),
    ],
)
def test_nothing_is_hard_to_reach(
    browser: Browser, files: dict[str, Path], name: str, scheme: Literal["dark", "light"], size: ViewportSize
) -> None:
    """Axe's rules on the page as it is unfolded, and no scrolling sideways but in a table's own box."""
    with watched_page(browser) as page:
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        page.set_viewport_size(size)
        show(page, files[name])
        see_all(page)
        assert serious_violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
        widest = page.evaluate("Math.max(...[...document.querySelectorAll('.plot')].map((one) => one.scrollWidth))")
        assert widest <= size["width"]


def test_a_hostile_name_is_shown_and_not_run(browser: Browser, files: dict[str, Path]) -> None:
    with watched_page(browser) as page:
        page.on("dialog", lambda dialog: pytest.fail(f"an alert: {dialog.message}"))
        show(page, files["comparison"])
        see_all(page)
        assert HOSTILE in first_column(page)
        drawn = page.locator(".plot text", has_text=HOSTILE)
        assert drawn.count() >= 1
        assert page.evaluate("document.querySelectorAll('main img, .plot b').length") == 0


def test_without_its_library_the_page_says_so(browser: Browser, files: dict[str, Path], tmp_path: Path) -> None:
    text = files["comparison"].read_text(encoding="utf-8")
    start = text.index('id="plotly">') + len('id="plotly">')
    (tmp_path / "page.html").write_text(
        text[:start] + "AAAA" + text[text.index("</script>", start) :], encoding="utf-8"
    )
    with watched_page(browser) as page:
        page.goto((tmp_path / "page.html").as_uri())
        page.locator(".plot .lost").first.wait_for()
        assert "Its numbers are in the table below" in page.locator(".plot .lost").first.text_content()


def test_print_shows_every_figure_on_white(browser: Browser, files: dict[str, Path]) -> None:
    with watched_page(browser) as page:
        page.emulate_media(color_scheme="dark")
        show(page, files["comparison"])
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        page.emulate_media(media="print")
        page.wait_for_function("[...document.querySelectorAll('.plot')].every((one) => one.querySelector('.main-svg'))")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert not page.get_by_role("navigation").is_visible()
        page.evaluate("dispatchEvent(new Event('afterprint'))")
        assert page.evaluate("document.documentElement.dataset.theme") == "dark"
