"""Builds the documentation's site with Sphinx: `make docs`.

The pages in `docs/` are written to be read where they are, on the repository's site. This program copies them into a
folder of their own, with links between them as Sphinx wants them, and lets Sphinx make the site. The Python of the
pages of `EXECUTED` is run by it, and what it prints stands where the page shows it.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from sphinx.cmd.build import main as sphinx

SITE = Path(__file__).resolve().parent
DOCS, ROOT = SITE.parent, SITE.parent.parent
BUILT = DOCS / "_build"
STAGED, CACHE = BUILT / "pages", BUILT / "executed"
REPOSITORY = "https://github.com/ppl-vi/ppl_vi/blob/main"
# Pages that lie outside of `docs/`, and what they are called on the site.
OUTSIDE = {"README.md": "quickstart.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
EXECUTED = ("quickstart.md", "tutorial.md", "from-your-svi-loop.md", "sweeps.md")
HEADER = """---
file_format: mystnb
kernelspec:
  name: python3
---
"""
FENCE = re.compile(r"^```(\w*)\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s]+)(\))")
FIGURE = re.compile(r"!\[([^\]]*)\]\(([^)\s]+\.png)\)")
LISTED = re.compile(r"^(?:\w+ <)?([\w-]+)>?$", re.MULTILINE)
TITLE = re.compile(r"\A# .*\n")


def pages() -> dict[str, Path]:
    """Every page by its name on the site."""
    return {
        OUTSIDE.get(path.name, path.name): path for path in [*(ROOT / name for name in OUTSIDE), *DOCS.glob("*.md")]
    }


def relinked(text: str, page: Path, names: dict[Path, str]) -> str:
    """A page whose links lead to the site's pages and files, or else to the repository."""

    def link(found: re.Match[str]) -> str:
        path, mark, anchor = found[2].partition("#")
        if not path or "://" in path:
            return found[0]
        goal = (page.parent / path).resolve()
        inside = goal.relative_to(DOCS).as_posix() if goal.is_relative_to(DOCS) else ""
        new = names.get(goal) or inside or f"{REPOSITORY}/{goal.relative_to(ROOT).as_posix()}"
        return f"{found[1]}{new}{mark}{anchor}{found[3]}"

    return LINK.sub(link, text)


def executed(text: str) -> str:
    """A page as a notebook: a block of Python is run, and what it prints stands where a block of text shows it."""
    parts, end, waiting = [], 0, ""
    for found in FENCE.finditer(text):
        parts.append(text[end : found.start()])
        end = found.end()
        language, content = found[1], found[2]
        if language == "text" and waiting:
            parts.append(f"```{{code-cell}} python\n:tags: [remove-input]\n{waiting}```\n")
            waiting = ""
        elif language == "python":
            parts += [_cell(waiting), found[0]]
            waiting = content
        else:
            parts.append(found[0])
    return HEADER + "".join([*parts, text[end:], _cell(waiting)])


def _cell(content: str) -> str:
    """A cell that is run, of which nothing is shown; "" for nothing."""
    return f"\n```{{code-cell}} python\n:tags: [remove-cell]\n{content}```\n\n" if content else ""


def gallery(staged: dict[str, str]) -> str:
    """A page with every figure of the other pages, each with what it shows and a link to its page."""
    cards = []
    for name, text in staged.items():
        title = TITLE.search(text.removeprefix(HEADER))
        for words, path in FIGURE.findall(text):
            heading = title[0][2:].strip() if title else name
            cards.append(
                f":::{{grid-item-card}} {heading}\n:link: {name.removesuffix('.md')}\n:link-type: doc\n\n"
                f"```{{image}} {path}\n:alt: {words}\n```\n\n{words}\n:::\n"
            )
    grid = f"::::{{grid}} 1 1 2 2\n:gutter: 3\n\n{''.join(cards)}::::\n"
    return f"# Gallery\n\nEach figure leads to the page that explains it.\n\n{grid}"


def with_rest(text: str, others: str, names: Iterable[str]) -> str:
    """A page's list of pages, at the end of which stand those that no list names.

    Args:
        text: the page, which ends with its list.
        others: the texts of all pages with lists.
        names: of all pages.
    """
    listed = set(LISTED.findall(others))
    rest = "".join(f"{name}\n" for name in sorted(name.removesuffix(".md") for name in names) if name not in listed)
    return f"{text.rstrip().removesuffix('```')}{rest}```\n"


def stage() -> None:
    """Puts all pages and what they show into the folder that Sphinx reads."""
    shutil.rmtree(STAGED, ignore_errors=True)
    shutil.copytree(SITE, STAGED, ignore=shutil.ignore_patterns("build.py", "__pycache__"))
    shutil.copytree(DOCS / "results", STAGED / "results")
    for path in DOCS.glob("*.png"):
        shutil.copy(path, STAGED / path.name)
    found = pages()
    names = {path: name for name, path in found.items()}
    staged = {}
    for name, path in found.items():
        text = relinked(path.read_text(encoding="utf-8"), path, names)
        text = TITLE.sub("# Quickstart\n", text) if name == "quickstart.md" else text
        staged[name] = executed(text) if name in EXECUTED else text
    lists = {path.name: path.read_text(encoding="utf-8") for path in SITE.glob("*.md")}
    staged["how-to.md"] = with_rest(lists["how-to.md"], "".join(lists.values()), found)
    staged["gallery.md"] = gallery(staged)
    for name, text in staged.items():
        (STAGED / name).write_text(text, encoding="utf-8")


def cache() -> Path:
    """Where outputs are kept for later builds: another folder for each state of the package, whose numbers they are."""
    digest = hashlib.sha256()
    for path in [
        ROOT / "constraints.txt",
        *sorted((ROOT / "ppl_vi").rglob("*.py")),
        *sorted(ROOT.glob("ppl_vi/**/*.h")),
    ]:
        digest.update(path.read_bytes())
    return CACHE / digest.hexdigest()[:16]


def main(arguments: list[str]) -> int:
    """Builds the site; the exit code is Sphinx's, which is not 0 where there is a warning."""
    stage()
    kept = cache()
    for old in CACHE.glob("*") if CACHE.is_dir() else ():
        if old != kept:
            shutil.rmtree(old)
    options = [
        "-b",
        "html",
        "-W",
        "--keep-going",
        "-d",
        str(BUILT / "doctrees"),
        "-D",
        f"nb_execution_cache_path={kept}",
    ]
    code = sphinx([*options, *arguments, str(STAGED), str(BUILT / "html")])
    if code == 0:
        print(f"the site is in {(BUILT / 'html' / 'index.html').relative_to(ROOT)}")
    return int(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
