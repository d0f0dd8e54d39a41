"""The site of the documentation: the pages are staged as they are, and Sphinx builds it without a warning."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import ppl_vi
from ppl_vi import testing

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "docs" / "site"


@pytest.fixture(scope="module")
def build() -> ModuleType:
    pytest.importorskip("sphinx", reason="the site needs the extra docs")
    spec = importlib.util.spec_from_file_location("site_build", SITE / "build.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_links_lead_to_the_sites_pages_or_else_to_the_repository(build: ModuleType) -> None:
    names = {path: name for name, path in build.pages().items()}
    text = (
        "[a](docs/limits.md#memory) ![b](docs/toy.png) [c](CITATION.cff) [d](https://pyro.ai) [e](#more) "
        "[f](CHANGELOG.md)"
    )
    assert build.relinked(text, ROOT / "README.md", names) == (
        f"[a](limits.md#memory) ![b](toy.png) [c]({build.REPOSITORY}/CITATION.cff) [d](https://pyro.ai) [e](#more) "
        "[f](changelog.md)"
    )
    inside = build.relinked("[a](../README.md#install) [b](results/zoo.json)", ROOT / "docs" / "toy.md", names)
    assert inside == "[a](quickstart.md#install) [b](results/zoo.json)"


def test_what_python_prints_stands_where_the_page_shows_it(build: ModuleType) -> None:
    blocks = {"python": "a = 1\nprint(a)", "text": "1", "sh": "ls"}
    page = "\nIt prints\n\n".join(f"```{language}\n{text}\n```\n" for language, text in blocks.items())
    page += "\n```python\nb = 2\n```\n"
    cell = "```{code-cell} python\n:tags: [remove-input]\na = 1\nprint(a)\n```\n"
    hidden = "```{code-cell} python\n:tags: [remove-cell]\nb = 2\n```\n"
    found = build.executed(page)
    assert found.startswith(build.HEADER)
    assert found.index("```python\na = 1") < found.index("It prints") < found.index(cell) < found.index("```sh\nls")
    assert found.index("```python\nb = 2") < found.index(hidden)
    assert "```text" not in found


def test_every_block_of_python_of_an_executed_page_is_run_once_and_in_order(build: ModuleType) -> None:
    for name in build.EXECUTED:
        text = build.pages()[name].read_text(encoding="utf-8")
        python = [content for language, content in build.FENCE.findall(text) if language == "python"]
        cells = re.findall(r"^```\{code-cell\} python\n:tags: \[[\w-]+\]\n(.*?)^```", build.executed(text), re.M | re.S)
        assert python
        assert cells == python


def test_the_gallery_has_every_figure_with_its_words_and_page(build: ModuleType) -> None:
    pages = {name: path.read_text(encoding="utf-8") for name, path in build.pages().items()}
    found = build.gallery(pages)
    for path in (ROOT / "docs").glob("*.png"):
        assert f"{path.name}\n:alt: " in found
    assert ":link: tutorial\n" in found


def test_a_page_that_no_list_names_stands_at_the_end_of_the_how_to(build: ModuleType) -> None:
    lists = {path.name: path.read_text(encoding="utf-8") for path in SITE.glob("*.md")}
    found = build.with_rest(lists["how-to.md"], "".join(lists.values()), [*build.pages(), "a-new-page.md"])
    assert "a-new-page" in found.removesuffix("\n```\n").splitlines()
    for name in build.pages():
        listed = build.LISTED.findall("".join({**lists, "how-to.md": found}.values()))
        assert listed.count(name.removesuffix(".md")) == 1


def test_every_public_name_has_its_place(build: ModuleType) -> None:
    public = re.findall(r"^   ([\w.]+)$", (SITE / "api.md").read_text(encoding="utf-8"), re.MULTILINE)
    names = {name for name in ppl_vi.__all__ if not name.startswith("_")}
    assert set(public) == names | {f"testing.{testing.assert_close_to_posterior.__name__}"}
    assert len(public) == len(set(public))


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(build: ModuleType, tmp_path: Path) -> None:
    """Without running the pages' Python, which the tests of the pages do."""
    for folder in ("docs", "ppl_vi"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("_build", "__pycache__"))
    for name in (*build.OUTSIDE, "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    command = [sys.executable, str(tmp_path / "docs" / "site" / "build.py"), "-q", "-D", "nb_execution_mode=off"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    built = tmp_path / "docs" / "_build" / "html"
    assert (built / "index.html").is_file()
    assert "Fits guides to a model" in (built / "api" / "ppl_vi.compare.html").read_text(encoding="utf-8")
    assert "<math" in (built / "tutorial.html").read_text(encoding="utf-8")
    scripts = re.findall(r"<script[^>]*src=\"(https?://[^\"]*)", (built / "tutorial.html").read_text(encoding="utf-8"))
    assert scripts == [], "the site works without a network"
