"""Checks as a JUnit XML file, which continuous integration servers such as Jenkins and GitLab read.

Source: the schema of Apache Ant's JUnit task, in the part that both of these servers read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from xml.etree import ElementTree

from ppl_vi.report.checks import Check, Outcome

# What XML 1.0 can't hold, not even escaped.
NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def to_junit(checks: Sequence[Check], suite: str) -> str:
    """The XML text: a test case a check. What failed or is undecided is a failure; an uncertified truth is an error.

    The time of a guide's fit stands at the first of its checks.

    Args:
        checks: the checks.
        suite: what the suite of tests is called: the model.
    """
    counts = {
        "tests": len(checks),
        "failures": sum(check.outcome in (Outcome.FAILED, Outcome.UNDECIDED) for check in checks),
        "errors": sum(check.outcome is Outcome.UNCERTIFIED for check in checks),
    }
    numbers = {name: str(count) for name, count in counts.items()}
    first = {check.guide: check for check in reversed(checks)}
    seconds = [
        0.0 if check is not first[check.guide] or math.isnan(check.seconds) else check.seconds for check in checks
    ]
    total = {"time": f"{sum(seconds):.3f}"}
    root = ElementTree.Element("testsuites", {"name": "ppl-vi check"} | numbers | total)
    found = ElementTree.SubElement(root, "testsuite", {"name": _plain(suite), "skipped": "0"} | numbers | total)
    for check, time in zip(checks, seconds, strict=True):
        name = " ".join(filter(None, (check.guide, check.limit, check.latent)))
        case = {"classname": _plain(suite.replace(":", ".")), "name": _plain(name), "time": f"{time:.3f}"}
        element = ElementTree.SubElement(found, "testcase", case)
        if check.outcome is not Outcome.PASSED:
            kind = "error" if check.outcome is Outcome.UNCERTIFIED else "failure"
            said = ElementTree.SubElement(element, kind, {"message": _plain(check.text), "type": str(check.outcome)})
            said.text = _plain(str(check))
    ElementTree.indent(root)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{ElementTree.tostring(root, encoding="unicode")}\n'


def _plain(text: str) -> str:
    """A text with those characters written out that XML can't hold."""
    return NO_XML.sub(lambda found: found.group().encode("unicode_escape").decode("ascii"), text)
