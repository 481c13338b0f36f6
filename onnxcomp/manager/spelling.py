"""How options are written in a spec string; `onnxcomp.manager.spec` reads them back."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

from onnxcomp.manager.options import NONE

WORD = re.compile(r"[A-Za-z_][\w.:/*?-]*")


def spelled(name: str, options: Any) -> str:
    """A pass and its options, a dataclass, as a spec string; defaults are left out."""
    given = [
        f"{f.name}={format_value(getattr(options, f.name))}"
        for f in dataclasses.fields(options)
        if getattr(options, f.name) != f.default
    ]
    return f"{name}{{{','.join(given)}}}" if given else name


def format_value(value: Any) -> str:
    """One value as spec strings write it."""
    if value is None:
        return NONE
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{','.join(format_value(v) for v in value)}]"
    text = str(value)
    plain = WORD.fullmatch(text) and text not in ("true", "false", NONE)
    return text if plain else json.dumps(text, ensure_ascii=False)


def exactly(name: str) -> str:
    """A glob that matches this name alone."""
    return re.sub(r"([*?\[])", r"[\1]", name)
