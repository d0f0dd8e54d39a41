"""The command line as a whole: its help, lists, completion, exit codes, and what it says where."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ppl_vi.__main__ import main, parser
from ppl_vi.cli import all_parsers
from ppl_vi.cli.codes import MEANINGS, SIGNALLED
from ppl_vi.guides import FAMILIES, REFUSED
from ppl_vi.metrics.table import METRICS, described
from ppl_vi.runtime import names, signals, stages, verbosity
from ppl_vi.runtime.display import following
from tests.test_start import pty

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = [one for one in all_parsers(parser()) if one.prog != "ppl-vi"]


@pytest.mark.parametrize("command", [parser(), *COMMANDS], ids=lambda one: str(one.prog))
def test_every_help_has_examples_that_are_understood(command: argparse.ArgumentParser) -> None:
    lines = [line.strip() for line in (command.epilog or "").splitlines() if line.startswith("  ppl-vi ")]
    assert lines
    for line in lines:
        words = shlex.split(line)
        assert line.startswith(command.prog)
        parser().parse_args(words[1 : words.index(">") if ">" in words else None])
    assert command.format_help().rstrip().endswith((command.epilog or "").rstrip())


def test_the_page_has_every_command_and_exit_code_as_the_code_has_them() -> None:
    text = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", text, re.MULTILINE)
    assert rows == [(str(code), meaning) for code, meaning in MEANINGS.items()]
    told = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    assert {one.prog for one in COMMANDS} <= {f"ppl-vi {one}" for one in told}


def test_every_signal_has_its_exit_code() -> None:
    assert {SIGNALLED + one for one in signals.SIGNALS} == {code for code in MEANINGS if code > SIGNALLED}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full disk to write to")
@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["list", "objectives"], 1, "can't read or write: No space left on device"),
        (["list", "guests"], 2, "invalid choice: 'guests'"),
        (["check", "my_model:model"], 2, "name a limit at least"),
    ],
)
def test_the_exit_code_is_what_the_page_says(arguments: list[str], code: int, said: str) -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "ppl_vi", *arguments]
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode in MEANINGS
    assert (done.returncode, said in done.stderr) == (code, True)


def listed(what: str, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    assert main(["list", what, "--json"]) == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    assert main(["list", what]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [one["name"] for one in found]
    for line, one in zip(lines, found, strict=True):
        assert (one["description"] or f"refused: {one['refused']}") in line
        assert len(line.split()) > 2
    return found


def test_lists_hold_every_name_with_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    guides = listed("guides", capsys)
    assert [one["name"] for one in guides] == [*FAMILIES, *REFUSED]
    assert {one["name"] for one in guides if one["refused"]} == set(REFUSED)
    assert [one["name"] for one in listed("objectives", capsys)] == list(names.OBJECTIVES)
    metrics = {one["name"]: one["description"] for one in listed("metrics", capsys)}
    assert metrics == {name: described(name) for name in METRICS}
    assert len(set(metrics.values())) >= len(metrics) - 1  # log p(x) by importance sampling is there twice


def test_the_zoo_is_listed_in_a_checkout_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    found = listed("models", capsys)
    assert len(found) == 15
    for one in found:
        module, _, attribute = one["target"].partition(":")
        assert callable(getattr(sys.modules[module], attribute))
    monkeypatch.setattr("ppl_vi.commands.listing.find_spec", lambda name: None)
    assert "run this from the root of a checkout" in refused(main, ["list", "models"])


def completed(script: Path, *words: str) -> set[str]:
    """What bash would complete the last of the words to."""
    program = f"""
        source {script}
        COMP_WORDS=({" ".join(words)} {"''" if words[-1] == "" else ""}); COMP_CWORD={len(words) - 1}
        $(complete -p ppl-vi | sed 's/.*-F \\([^ ]*\\).*/\\1/') ppl-vi "{words[-1]}" "{words[-2]}"
        echo "${{COMPREPLY[*]}}"
    """
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.skipif(os.name != "posix", reason="bash is not there")
def test_bash_completes_commands_options_and_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "script"
    script.write_text(capsys.readouterr().out)
    assert completed(script, "ppl-vi", "co") == {"compare", "completion"}
    assert completed(script, "ppl-vi", "check", "--min") == {"--min-coverage", "--min-sd-ratio"}
    assert completed(script, "ppl-vi", "compare", "--guides", "AutoNormal", "ga") == {"gamma"}
    assert completed(script, "ppl-vi", "list", "m") == {"models", "metrics"}
    assert completed(script, "ppl-vi", "compare", "--objective", "t") == {
        name for name in names.OBJECTIVES if name.startswith("t")
    }


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_a_script_with_every_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    shown = capsys.readouterr().out
    assert all(one.prog.split()[1] in shown for one in COMMANDS)


def test_completion_imports_nothing_at_the_start() -> None:
    script = (
        "import sys\nfrom ppl_vi.__main__ import parser\nparser()\nassert not {'shtab', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


LOUD = """
import sys
from ppl_vi import cli
from ppl_vi.runtime.display import following
from ppl_vi.runtime.outputs import write_output_text
from ppl_vi.runtime.stages import listening, stage
from pathlib import Path
def program(arguments):
    with following(True), listening(None, "guide"), stage("fitting"):
        pass
    print("a result")
    write_output_text(Path(arguments.file), "text")
    print("a warning", file=sys.stderr)
    try:
        raise ValueError("deep down")
    except ValueError as error:
        raise cli.UsageError("no such model") from error
parser = cli.Parser(prog="loud")
parser.add_argument("file")
sys.exit(cli.run(program, parser, None))
"""


@pytest.mark.parametrize(("options", "said"), [([], "normal"), (["-q"], "quiet"), (["-v"], "verbose")])
def test_quiet_and_verbose_say_less_and_more(options: list[str], said: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", LOUD, str(tmp_path / "file"), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "a result\n")
    assert done.stderr.endswith("loud: error: no such model\n")
    assert "a warning" in done.stderr
    assert ("guide: fitting\n" in done.stderr) == (said != "quiet")
    assert ("written to" in done.stderr) == (said != "quiet")
    assert bool(re.search(r"guide: fitting: 0\.\d\d s", done.stderr)) == (said == "verbose")
    assert ("ValueError: deep down" in done.stderr) == (said == "verbose")


def test_the_level_ends_with_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    with verbosity.speaking(verbosity.QUIET), following(True), stages.listening(None, "a"), stages.stage("b"):
        pass
    assert capsys.readouterr().err == ""
    assert not verbosity.is_quiet()


COLOURED = re.compile("\x1b\\[[0-9;]*(3[0-8]|9[0-7])[0-9;]*m")
WORKS = """
import time
from ppl_vi.runtime.display import following
from ppl_vi.runtime.stages import listening, stage
with following(True), listening(None, "guide"), stage("fitting", "step", 2) as running:
    running.advance()
    time.sleep(0.3)
"""


@pytest.mark.parametrize("no_color", ["", "1"])
def test_colours_are_for_terminals_and_not_where_they_are_not_wanted(no_color: str) -> None:
    environment = {**os.environ, "NO_COLOR": no_color, "TERM": "xterm-256color"}
    environment.pop("FORCE_COLOR", None)
    command = [sys.executable, "-c", WORKS]
    piped = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True)
    assert piped.stderr == b"guide: fitting\n"
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=theirs) as running:
        running.wait(60)
        shown = os.read(ours, 10_000).decode()
    os.close(ours)
    os.close(theirs)
    assert "fitting" in shown
    assert bool(COLOURED.search(shown)) == (no_color == "")
