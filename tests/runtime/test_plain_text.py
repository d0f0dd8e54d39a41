"""Terminals that take ASCII only: every sign has a form there, no program ends with an error, and columns stay even."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from benchmarks.toy_posterior import main
from ppl_vi.report import matrix
from ppl_vi.report.table import as_text, terminal
from ppl_vi.runtime.plain_text import FORMS, SUPERSCRIPTS, ascii_form, encodable_output
from tests.report.test_matrix import RECORDS

ROOT = Path(__file__).resolve().parent.parent.parent


def stream(encoding: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)


def written(to: io.TextIOWrapper) -> str:
    assert isinstance(to.buffer, io.BytesIO)
    return to.buffer.getvalue().decode(to.encoding)


def test_signs_have_ascii_forms() -> None:
    assert ascii_form("≤1e-6, −1.5 ± 2, x², inf¹²") == "<=1e-6, -1.5 +- 2, x^2, inf^12"
    assert ascii_form("жук") == r"\u0436\u0443\u043a"
    assert ascii_form("plain") == "plain"
    assert all(form.isascii() and form for form in FORMS.values())


def test_every_sign_that_the_code_prints_has_a_form_of_its_own() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "ppl_vi" / "report").glob("*.py"))
    assert {c for c in source if not c.isascii()} <= {*FORMS, *SUPERSCRIPTS}


@pytest.mark.parametrize(
    ("encoding", "expected"), [("ascii", "<= 1 +- ...\n"), ("utf-8", "≤ 1 ± …\n"), ("latin-1", "<= 1 ± ...\n")]
)
def test_what_a_stream_can_not_take_is_put_into_ascii(
    encoding: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = stream(encoding)
    monkeypatch.setattr(sys, "stdout", out)
    with encodable_output():
        print("≤ 1 ± …")
    assert written(out) == expected
    assert out.errors == "strict"


def test_a_program_prints_its_tables_to_an_ascii_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, errors = stream("ascii"), stream("ascii")
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", errors)
    monkeypatch.setattr("ppl_vi.cli.workers.MAX_WORKERS", 1)
    guides = ["--guides", "normal", "lognormal_mixture", "AutoDelta"]
    few = ["--num-steps", "20", "--num-particles", "8", "--num-replicas", "2", "--no-plots"]
    assert main(["--x", "1.5", *guides, *few, "--out", str(tmp_path)]) == 0
    shown = written(out)
    assert "log p(x) = -1.368946 +- " in shown
    assert "AutoDelta^1" in shown
    assert "\\u" not in shown
    assert "AutoDelta¹" in (tmp_path / "table.txt").read_text(encoding="utf-8")


def test_columns_stay_even_in_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    out = stream("ascii")
    monkeypatch.setattr(sys, "stdout", out)
    matrix.show(RECORDS, terminal())
    head, rule, *rows = [line.rstrip() for line in written(out).splitlines()][:4]
    assert any("<=1e-6" in row for row in rows)
    assert set(rule) == {"-"}
    assert {len(line) for line in (head, *rows)} == {len(rule)}  # the last column ends with the line


def test_a_printed_result_goes_to_an_ascii_terminal() -> None:
    shown = as_text(RECORDS, matrix.show, stream=stream("ascii"))
    assert "<=1e-6" in shown
    assert shown.isascii()
    assert "≤1e-6" in as_text(RECORDS, matrix.show, stream=stream("utf-8"))
    assert "≤1e-6" in as_text(RECORDS, matrix.show)
