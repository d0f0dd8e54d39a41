"""The pages: their Python runs, their commands are understood, their links lead somewhere, columns are explained."""

import argparse
import functools
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from benchmarks import annealing, speed
from models.posteriordb import loading as posteriordb_loading
from ppl_vi.report import columns, decoder_table
from ppl_vi.report.brief import brief

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")))
LINKING = [*PAGES, "CONTRIBUTING.md", "CHANGELOG.md"]
LONGEST_README = 150  # lines
LANGUAGES = {"python", "sh", "text", "toml", "yaml"}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`((?:python -m |make |ppl-vi |pip install |scripts/)[^`]*)`")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
RULE, SECONDS = re.compile("─+"), re.compile(r"\b\d[\d.e-]* s\b")
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?")
END = "-- the end of a block --"
WITHOUT = "my_package"  # stands for what a reader has


@dataclass(frozen=True)
class Block:
    """A fenced block of a page, and what its fence calls it."""

    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The file that the block asks to be saved as, in its first line."""
        found = re.match(r"# (\w+\.py)\n", self.text)
        return found.group(1) if found else None


@functools.cache
def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


@functools.cache
def blocks(page: str) -> tuple[Block, ...]:
    return tuple(Block(*found) for found in FENCE.findall(text_of(page)))


def python_of(page: str) -> str:
    """All Python of a page, in order."""
    return "\n".join(block.text for block in blocks(page) if block.language == "python")


def lines_of(page: str) -> list[str]:
    """The command lines of a page's blocks."""
    return [line for block in blocks(page) if block.language == "sh" for line in block.text.splitlines() if line]


def commands(page: str) -> list[str]:
    """The command lines of a page's blocks, its settings of servers among them, and those inside its sentences."""
    return lines_of(page) + served(page) + SPAN.findall(FENCE.sub("", text_of(page)))


def served(page: str) -> list[str]:
    """What a page's settings let a server for continuous integration run."""
    found: list[str] = []
    waiting: list[Any] = [yaml.safe_load(block.text) for block in blocks(page) if block.language == "yaml"]
    while waiting:
        node = waiting.pop(0)
        waiting += node.values() if isinstance(node, dict) else node if isinstance(node, list) else []
        found += [node["run"]] if isinstance(node, dict) and "run" in node else []
        found += node["script"] if isinstance(node, dict) and "script" in node else []
    return found


def files_of(page: str) -> dict[str, str]:
    """The files that a page asks its reader to save."""
    return {block.file: block.text for block in blocks(page) if block.file}


PROJECTS = [page for page in PAGES if len(files_of(page)) > 1]  # pages whose reader makes several files
WITH_PYTHON = [page for page in PAGES if python_of(page) and page not in PROJECTS]


@functools.cache
def project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return found


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md"])
def test_every_block_is_fenced_and_says_its_language(page: str) -> None:
    assert {block.language for block in blocks(page)} <= LANGUAGES
    outside = FENCE.sub("", text_of(page))
    assert "```" not in outside
    assert not re.search(r"(?:\A|\n\n)(?: {4}|\t)", outside), "an indented block: fence it and name its language"


# A line that names a stage, such as `truth: tree of bricks`.
OF_ALL = "loading Pyro and the models?|figures"  # of a whole command
STAGE = re.compile(rf"{OF_ALL}|(truth|[A-Za-z_:.]+): [A-Za-z][a-z']*( [A-Za-z'-]+)*", re.IGNORECASE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a reader works: results and figures of what is run stay here."""
    return tmp_path


def ran(command: list[str], folder: Path) -> str:
    """What a command prints; it must end well and say on standard error only its stages and what it has written."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stderr.splitlines() if not line.startswith("written to ")]
    assert [line for line in told if not STAGE.fullmatch(line)] == []
    return done.stdout


def saved(page: str, folder: Path) -> Path:
    """The page's Python in a file, under the name that it asks for."""
    names = {block.file for block in blocks(page) if block.file}
    assert len(names) <= 1
    file = folder / (names.pop() if names else "page.py")
    file.write_text(python_of(page), encoding="utf-8")
    return file


def shown_outputs(page: str) -> list[str | None]:
    """What a page says each block of Python prints: the text block right after it, or None."""
    pairs = zip(blocks(page), (*blocks(page)[1:], Block("", "")), strict=True)
    return [b.text if b.language == "text" else None for a, b in pairs if a.language == "python"]


def printed_by_blocks(page: str, folder: Path) -> list[str]:
    """What each block of a page's Python prints, run in order in one program."""
    file = saved(page, folder)
    python = [block.text for block in blocks(page) if block.language == "python"]
    file.write_text("".join(f"{text}\nprint({END!r})\n" for text in python), encoding="utf-8")
    printed = ran([sys.executable, file.name], folder).split(f"{END}\n")
    assert printed.pop() == ""
    return printed


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_PYTHON)
def test_python_runs_as_it_stands_and_prints_what_the_page_says(page: str, folder: Path) -> None:
    every, expected = printed_by_blocks(page, folder), shown_outputs(page)
    assert any(every)
    assert page not in ("README.md", "docs/tutorial.md") or any(expected)
    for printed, shown in zip(every, expected, strict=True):
        if shown is not None:
            lines = printed.splitlines()
            assert lines[0] == shown.splitlines()[0]
            printed = "\n".join(lines[: len(shown.splitlines())])
            # times are the machine's, and a column of them, and the line above it, is as wide as they are long
            printed, shown = (RULE.sub("─", SECONDS.sub("time", text)) for text in (printed, shown))
            assert NUMBER.sub("#", printed).split() == NUMBER.sub("#", shown).split()
            # the last digits are the processor's: another order of summing ends SVI elsewhere by a little
            assert numbers(printed) == pytest.approx(numbers(shown), rel=0.1, abs=0.02)


def test_each_block_is_compared_with_the_text_below_it() -> None:
    python = [block for block in blocks("docs/tutorial.md") if block.language == "python"]
    shown = shown_outputs("docs/tutorial.md")
    assert len(python) == len(shown) == 8
    assert all(shown)
    assert shown_outputs("docs/choosing-a-guide.md") == [None]


def numbers(text: str) -> list[float]:
    return [float(found.replace(",", "")) for found in NUMBER.findall(text)]


@pytest.mark.parametrize("page", WITH_PYTHON)
def test_python_compiles(page: str) -> None:
    compile(python_of(page), page, "exec")


class ParsedError(Exception):
    """The arguments were understood, and nothing was run."""


@pytest.fixture
def parse_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs stop when they have understood their arguments."""
    parse = argparse.ArgumentParser.parse_args

    def parse_args(self: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> None:
        parse(self, *args, **kwargs)
        raise ParsedError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)


def check_program(module: str, arguments: list[str]) -> None:
    """Whether a program takes these arguments; `...` stands for any."""
    with pytest.raises((ParsedError, SystemExit)) as ended:
        importlib.import_module(module).main([word for word in arguments if word != "..."])
    assert isinstance(ended.value, ParsedError) or not ended.value.code  # which --version ends with


def check_make(words: list[str]) -> None:
    """Whether make has the target, and its program takes what `ARGS` hands on."""
    rules = dict(re.findall(r"^([a-z]+):.*\n(?:\t(.*)\n)?", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    targets = [word for word in words if "=" not in word]
    assert targets
    assert set(targets) <= set(rules)
    for word in words:
        name, _, value = word.partition("=")
        if name == "ARGS":
            module = re.search(r"\$\(RUN\) (\S+) \$\(ARGS\)", rules[targets[0]])
            assert module, f"make {targets[0]} hands no ARGS on"
            check_program(module.group(1), shlex.split(value))


def check_pip(words: list[str]) -> None:
    """Whether an installation is one of the checkout, with extras and constraints that there are."""
    for i, word in enumerate(words):
        if i and words[i - 1] == "-c":
            assert (ROOT / word).is_file()
        elif word not in ("-c", "-e"):
            extras = re.fullmatch(rf"(?:\.|ppl_vi @ git\+{project()['urls']['Source']})(?:\[(\w+)\])?", word)
            assert extras, f"not the checkout: {word}"
            assert extras.group(1) is None or extras.group(1) in project()["optional-dependencies"]


def check_dask(program: str, arguments: list[str]) -> None:
    """Whether one of Dask's commands takes these arguments."""
    try:
        importlib.import_module(f"distributed.cli.dask_{program}").main.make_context(program, list(arguments))
    except click.UsageError as error:
        pytest.fail(f"dask {program}: {error}")


def check(command: str, page: str) -> None:
    """Whether a command could be run as it stands.

    Raises:
        AssertionError: it could not, or nobody told this test how to know.
    """
    source = project()["urls"]["Source"]
    match shlex.split(command, comments=True):
        case ["git", "clone", url]:
            assert url in (source, posteriordb_loading.URL)
        case ["cd", folder]:
            assert folder == source.rpartition("/")[2]
        case ["source", ".venv/bin/activate"]:
            pass
        case ["pip", "install", *words]:
            check_pip(words)
        case ["make", *words]:
            check_make(words)
        case ["python", "-m", module, *arguments]:
            check_program(module, arguments)
        case ["python", file]:
            assert file in files_of(page)
        case ["dask", "scheduler" | "worker" as program, *arguments]:
            check_dask(program, arguments)
        case ["ppl-vi", *arguments]:
            assert project()["scripts"]["ppl-vi"] == "ppl_vi.launch:main"
            check_program("ppl_vi.__main__", arguments[: arguments.index(">")] if ">" in arguments else arguments)
        case ["pytest", file]:
            assert file in files_of(page)
        case [script, *_] if script.startswith("scripts/"):
            assert os.access(ROOT / script, os.X_OK)
        case _:
            pytest.fail(f"{page}: tell this test how to check '{command}'")


@pytest.mark.usefixtures("parse_only")
@pytest.mark.parametrize("page", PAGES)
def test_commands_are_understood(page: str) -> None:
    for command in commands(page):
        check(command, page)


@pytest.mark.usefixtures("parse_only")
@pytest.mark.parametrize(
    "wrong",
    ["make toi", 'make toy ARGS="--quik"', "python -m benchmarks.vae --gide full", "pip install '.[nothing]'",
     "ppl-vi compere", "scripts/missing.sh", "dask worker --threads 1", "git clone https://example.com/x",
     "python missing.py"],
)  # fmt: skip
def test_a_wrong_command_is_found(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises((AssertionError, SystemExit, pytest.fail.Exception)):
        check(wrong, "README.md")


def runnable() -> Iterator[tuple[str, str]]:
    """The commands that are run: the README's programs, and each page's comparison of the model that it shows."""
    for page in PAGES:
        programs = ("ppl-vi compare ", "python -m ") if page == "README.md" else "ppl-vi compare "
        yield from ((page, line) for line in lines_of(page) if line.startswith(programs) and WITHOUT not in line)


@pytest.mark.slow
@pytest.mark.parametrize(("page", "command"), list(runnable()))
def test_commands_run(page: str, command: str, folder: Path) -> None:
    if any(block.file for block in blocks(page)):
        saved(page, folder)
    program, *arguments = shlex.split(command)
    module = ["-m", "ppl_vi"] if program == "ppl-vi" else []
    assert ran([sys.executable, *module, *arguments], folder)
    assert "--list-guides" in arguments or list((folder / "results").rglob("*.png"))


@pytest.mark.slow
@pytest.mark.parametrize("page", PROJECTS)
def test_a_project_of_several_files_runs_and_prints_what_the_page_says(page: str, folder: Path) -> None:
    for name, text in files_of(page).items():
        (folder / name).write_text(text, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    num_shown = 0
    for block, after in zip(blocks(page), (*blocks(page)[1:], Block("", "")), strict=True):
        for line in block.text.splitlines() if block.language == "sh" else ():
            program, *arguments = shlex.split(line)
            module = {"ppl-vi": "ppl_vi", "pytest": "pytest"}[program]
            done = subprocess.run(
                [sys.executable, "-m", module, *arguments], cwd=folder, env=environment, capture_output=True, text=True
            )
            shown = after.text if after.language == "text" else None
            assert done.returncode == int(shown is not None and " failed" in shown), done.stdout + done.stderr
            if shown is not None:
                num_shown += 1
                assert NUMBER.sub("#", done.stdout).split() == NUMBER.sub("#", shown).split()
                assert numbers(done.stdout) == pytest.approx(numbers(shown), rel=0.02, abs=1e-3)
    assert num_shown
    if "yaml" in {block.language for block in blocks(page)}:
        assert served(page)


def anchors(page: Path) -> set[str]:
    """What a link may point at in a page: its headings, as GitHub writes them."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", LINKING)
def test_links_and_images_lead_somewhere(page: str) -> None:
    for link in LINK.findall(FENCE.sub("", text_of(page))):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        goal = (ROOT / page).parent / path if path else ROOT / page
        assert goal.is_file(), f"{page}: {link}"
        assert not anchor or anchor in anchors(goal), f"{page}: {link}"


def test_every_page_and_figure_is_linked() -> None:
    linked = {
        ((ROOT / page).parent / link.partition("#")[0]).resolve()
        for page in LINKING
        for link in LINK.findall(text_of(page))
    }
    for path in (ROOT / "docs").rglob("*.*"):
        if path.relative_to(ROOT / "docs").parts[0] in ("site", "_build"):
            continue  # what makes the site, and the site
        assert path in linked, f"no page links to {path.relative_to(ROOT)}"


def figure_commands() -> dict[str, str]:
    """The command that makes each figure in docs/, by the table in CONTRIBUTING.md."""
    rows = re.findall(r"^\| (.*?) \| (.*?) \| .* \|$", text_of("CONTRIBUTING.md"), re.MULTILINE)
    return {name: command for names, command in rows for name in re.findall(r"`(\w[\w.]*\.png)`", names)}


@pytest.mark.usefixtures("parse_only")
def test_every_figure_is_made_by_a_command() -> None:
    made = figure_commands()
    assert set(made) == {path.name for path in (ROOT / "docs").glob("*.png")}
    for command in made.values():
        for words in re.findall(r"`(.*)`", command):
            check(words, "CONTRIBUTING.md")


def test_readme_is_short() -> None:
    assert len(text_of("README.md").splitlines()) <= LONGEST_README


def test_lines_are_no_longer_than_those_of_code() -> None:
    for page in [*LINKING, "CITATION.cff"]:
        for number, line in enumerate(text_of(page).splitlines(), 1):
            assert len(line) <= 120 or line.startswith(("|", "!", "¹", "²", "#")), (
                f"{page}:{number}: {len(line)} characters"
            )


def headings() -> set[str]:
    """Every heading and row label that tables print."""
    shown = [*columns.BY_OBSERVATION.columns(), *columns.BY_MODEL.columns(), *brief().columns(), columns.GUIDE]
    found = [" ".join(column.heading) for column in shown]
    found += [label for label, _ in (*decoder_table.ROWS, *decoder_table.BOUNDS)]
    found += [*decoder_table.HEADINGS, *annealing.HEADINGS, *speed.HEADINGS]
    return {" ".join(heading.split()) for heading in found}


def test_glossary_explains_every_column() -> None:
    explained = set(re.findall(r"\*\*(.+?)\*\*", " ".join(text_of("docs/glossary.md").split())))
    assert headings() - explained == set()


def test_release_is_told_alike_everywhere() -> None:
    version, urls = importlib.import_module("ppl_vi").__version__, project()["urls"]
    citation = dict(re.findall(r"^([a-z-]+): (.+)$", text_of("CITATION.cff"), re.MULTILINE))
    assert citation["version"] == version
    assert citation["license"] == project()["license"]
    assert citation["repository-code"] == urls["Source"]
    assert f"\n## {version}\n" in text_of("CHANGELOG.md")
    assert all(url.startswith(urls["Homepage"]) for url in urls.values())


@pytest.mark.skipif(sys.platform != "linux", reason="the recipe takes GNU sed")
def test_recipe_for_new_numbers_in_the_zoo_page_replaces_its_table(folder: Path) -> None:
    lines = text_of("docs/choosing-a-guide.md").splitlines()
    rows = [i for i, line in enumerate(lines) if line.startswith("|")]
    assert rows == list(range(rows[0], rows[-1] + 1)), "the recipe takes the page's only table"
    (recipe,) = (block.text for block in blocks("CONTRIBUTING.md") if "sed -i" in block.text)
    shutil.copytree(ROOT / "docs", folder / "docs")
    (folder / "results" / "zoo").mkdir(parents=True)
    for name in ("records.json", "heat_map.png"):
        (folder / "results" / "zoo" / name).write_text("new")
    fresh = ["| model | AutoNormal |", "| --- | --- |", "| banana | 0.7 = 0.7 + 1e-5 |"]
    (folder / "results" / "zoo" / "table.md").write_text("\n".join(fresh) + "\n")
    subprocess.run(["bash", "-e", "-c", recipe], cwd=folder, check=True)
    page = (folder / "docs" / "choosing-a-guide.md").read_text(encoding="utf-8")
    assert [line for line in page.splitlines() if line.startswith("|")] == fresh
    assert [line for line in page.splitlines() if not line.startswith("|")] == [
        line for line in lines if not line.startswith("|")
    ]
