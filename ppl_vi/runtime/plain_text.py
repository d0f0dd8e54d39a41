"""Text for terminals and pipes that take ASCII only: signs as words or letters instead of an error.

Python stops with `UnicodeEncodeError` where it is to print a sign that the encoding of standard output lacks, as with
`PYTHONIOENCODING=ascii`. While a program runs, such signs are written in their ASCII forms: `<=` for `≤`, `+-` for `±`,
`^2` for `²`.
"""

from __future__ import annotations

import codecs
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

FORMS = {
    "≤": "<=", "≥": ">=", "±": "+-", "–": "-", "—": "-", "…": "...", "·": "-", "✓": "ok", "×": "x", "→": "->",
    "µ": "u", "μ": "mu", "σ": "sigma", "Φ": "Phi", "−": "-", "‖": "||", "’": "'", "“": '"', "”": '"', "\u00a0": " ",
}  # fmt: skip
SUPERSCRIPTS = {"⁰¹²³⁴⁵⁶⁷⁸⁹"[digit]: str(digit) for digit in range(10)}
HANDLER = "ppl_vi.ascii"  # the name of the way in which signs that can't be encoded are written


def ascii_form(text: str) -> str:
    """A text in ASCII; a sign without a form of its own is written by its number, as in `\\u1234`."""
    if text.isascii():
        return text
    raised = re.sub(
        f"[{''.join(SUPERSCRIPTS)}]+", lambda found: "^" + "".join(SUPERSCRIPTS[c] for c in found.group()), text
    )
    return "".join(FORMS.get(c, c) for c in raised).encode("ascii", "backslashreplace").decode("ascii")


def form_for(stream: Any) -> Callable[[str], str]:
    """How text is written to a stream: as it is, or in ASCII where its encoding has not all signs that tables use."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        "".join((*FORMS, *SUPERSCRIPTS)).encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return ascii_form
    return str


@contextmanager
def encodable_output() -> Iterator[None]:
    """While open, signs that standard output or standard error can't encode are written in their ASCII forms."""
    codecs.register_error(HANDLER, _replaced)
    changed = []
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure") and form_for(stream) is ascii_form:
            changed.append((stream, stream.errors))
            stream.reconfigure(errors=HANDLER)
    try:
        yield
    finally:
        for stream, errors in changed:
            if not stream.closed:
                stream.reconfigure(errors=errors)


def _replaced(error: UnicodeError) -> tuple[str | bytes, int]:
    """What is written where a sign can't be encoded, and where to go on."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return ascii_form(error.object[error.start : error.end]), error.end
