"""What does a TOML text hold? One door for every file that a person writes."""

from __future__ import annotations

import re
import tomllib
from typing import Any

DEEPEST = 100  # parts of one dotted key


def parse(text: str) -> dict[str, Any]:
    """The tables of a text.

    Raises:
        ValueError: it is no TOML, or holds a number of too many digits.
        RecursionError: its tables are nested deeper than anybody means.
    """
    # a parser's memory grows with the square of a dotted key's parts: such keys are refused before it sees them
    if any(piece.count(".") > DEEPEST for piece in re.split(r"[=,\[\]{}\n]", text)):
        raise RecursionError(f"a key has more than {DEEPEST} parts")
    return tomllib.loads(text)
