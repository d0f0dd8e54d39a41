"""Formulas as MathML, which browsers show without a script and without a network."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

# What docutils reads otherwise than TeX, and how it has to be written.
SPELLED_OUT = (
    (r"\\big([\[(])", r"\\bigl\1"),
    (r"\\big([\])])", r"\\bigr\1"),
    (r"\\([td]?frac)(\w)(\w)", r"\\\1{\2}{\3}"),
    (r"\\(log|min) *(?=[a-zA-Z0-9\\])", r"\\\1\,"),
)


def _mathml(tex: str, as_block: bool) -> str:
    """A formula as MathML."""
    for pattern, replacement in SPELLED_OUT:
        tex = re.sub(pattern, replacement, tex)
    return str(tex2mathml(tex, as_block=as_block))


def _inline(self: Any, node: nodes.math) -> None:
    self.body.append(_mathml(node.astext(), as_block=False))
    raise nodes.SkipNode


def _block(self: Any, node: nodes.math_block) -> None:
    self.body.append(f'<div class="formula" tabindex="0">{_mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode


def setup(app: Any) -> dict[str, bool]:
    """Tells Sphinx of the renderer."""
    app.add_html_math_renderer("mathml", inline_renderers=(_inline, None), block_renderers=(_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
