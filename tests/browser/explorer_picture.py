"""Makes the picture in docs/explorer.md: `python -m tests.browser.explorer_picture`, from the root."""

from __future__ import annotations

import argparse
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ppl_vi.page import explorer
from tests.browser.watched import launched, watched_page

COLORS = 96  # so few that the file stays small, and enough for the blue bands


def main(argv: Sequence[str] | None = None) -> None:
    """Writes a picture of the whole explorer, without the list of what to try."""
    parser = argparse.ArgumentParser(prog="explorer_picture", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/explorer.png"), help="the file (docs/explorer.png)")
    out: Path = parser.parse_args(argv).out
    with tempfile.TemporaryDirectory() as folder, launched() as browser, watched_page(browser) as page:
        file = Path(folder) / "explorer.html"
        file.write_text(explorer.page(), encoding="utf-8")
        page.goto(file.as_uri())
        page.locator("[data-plot=gaps][aria-label*=softplus]").wait_for()  # the last curve is there
        taken = page.locator(".explorer-grid").screenshot()
    with Image.open(io.BytesIO(taken)) as picture:
        picture.convert("RGB").quantize(COLORS, dither=Image.Dither.NONE).save(out, optimize=True)


if __name__ == "__main__":
    main()
