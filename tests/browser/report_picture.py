"""Makes the picture in docs/report.md: `python -m tests.browser.report_picture results/toy_posterior/report.html`."""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from tests.browser.watched import launched, watched_page

SIZE = {"width": 1280, "height": 1500}
COLORS = 128  # so few that the file stays small


def main(argv: Sequence[str] | None = None) -> None:
    """Writes a picture of the upper part of a page."""
    parser = argparse.ArgumentParser(prog="report_picture", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("page", type=Path, help="a page of ppl-vi report")
    parser.add_argument("--out", type=Path, default=Path("docs/report.png"), help="the file (docs/report.png)")
    arguments = parser.parse_args(argv)
    with launched() as browser, watched_page(browser) as page:
        page.set_viewport_size(SIZE)
        page.goto(arguments.page.resolve().as_uri())
        page.locator(".plot .main-svg").first.wait_for()
        taken = page.screenshot()
    with Image.open(io.BytesIO(taken)) as picture:
        small = picture.convert("RGB").resize((1024, 1200), Image.Resampling.LANCZOS)
        small.quantize(COLORS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(arguments.out, optimize=True)


if __name__ == "__main__":
    main()
