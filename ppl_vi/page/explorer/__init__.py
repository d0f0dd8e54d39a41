"""The explorer of the toy posterior: a section of a page in which sliders move the observation and a guide.

It computes in the page, in plain JavaScript, and needs nothing but itself. The files beside this one are its parts.
"""

from __future__ import annotations

from importlib.resources import files

# In this order: each uses what stands before it.
SCRIPTS = ("numerics.js", "families.js", "toy.js", "plots.js", "landscape.js", "gaps.js", "explorer.js")


def explorer_section() -> str:
    """The explorer as one HTML element `<section class="explorer">`, its style and script included.

    A page may hold it once. It takes the colours `--paper`, `--raised`, `--ink`, `--soft`, `--rule` and `--link` from
    the page where it sets them, as hexadecimal numbers, and its theme from the system or from
    `<html data-theme="dark">`.
    """
    script = "\n".join(_text(name) for name in SCRIPTS)
    return (
        f"<style>\n{_text('explorer.css')}</style>\n{_text('explorer.html')}"
        f'<script>\n(() => {{\n"use strict";\n{script}}})();\n</script>\n'
    )


def page() -> str:
    """The explorer as a page of its own, to be saved as an HTML file and opened from disk."""
    return _text("page.html").replace("{section}", explorer_section())


def _text(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")
