"""JSON as other programs read it."""

from __future__ import annotations

import json
from typing import Any


def strict(text: str) -> Any:
    """JSON without NaN and Infinity, which Python alone takes."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)
