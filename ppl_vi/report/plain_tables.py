"""Tables for consoles that take ASCII only: texts are put into ASCII before the widths of columns are measured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rich.box import Box
from rich.console import Console, ConsoleRenderable, Group, RenderHook
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ppl_vi.runtime.plain_text import ascii_form, form_for

# The lines of `rich.box.SIMPLE_HEAD`, which all tables here have, in ASCII.
HEAD = Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)


class InAscii(RenderHook):
    """Puts what a console is about to print into ASCII."""

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """The same things with their texts in ASCII."""
        return [in_ascii(one) for one in renderables]


def for_encoding(console: Console, stream: Any = None) -> Console:
    """The same console, which prints tables in ASCII if its file, or the stream that they go to, can't take more."""
    if form_for(stream or console.file) is ascii_form:
        console.push_render_hook(InAscii())
    return console


def in_ascii(thing: Any) -> Any:
    """A text, or what is made of texts, in ASCII; what it does not know is left as it is."""
    match thing:
        case str():
            return ascii_form(thing)
        case Text():
            return thing if thing.plain.isascii() else Text(ascii_form(thing.plain), style=thing.style)
        case Group():
            return Group(*map(in_ascii, thing.renderables))
        case Padding():
            sides = (thing.top, thing.right, thing.bottom, thing.left)
            return Padding(in_ascii(thing.renderable), sides, style=thing.style, expand=thing.expand)
        case Table():
            thing.box = HEAD
            thing.columns = [
                replace(column, header=in_ascii(column.header), _cells=list(map(in_ascii, column._cells)))
                for column in thing.columns
            ]
    return thing
