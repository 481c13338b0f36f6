"""What does onnxcomp/api/keywords.py say? This writes it from the settings and from the options of the pass distill.

python docs/make_keywords.py          # tests/test_api_types.py fails while the module is out of date
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from onnxcomp.api.given import PARTS, declared
from onnxcomp.job import Job
from onnxcomp.manager.options import describe
from onnxcomp.manager.registry import find
from onnxcomp.settings import Setting, settings_of
from onnxcomp.verify.budget import Size

MODULE = Path(__file__).resolve().parent.parent / "onnxcomp" / "api" / "keywords.py"
HEAD = '''"""Which keywords do the library's functions take? Made by docs/make_keywords.py from the settings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from onnxcomp.api.models import Model
    from onnxcomp.data.labels import LabelSource
    from onnxcomp.data.metric import MetricSource
    from onnxcomp.data.open import Source
    from onnxcomp.manager.pipeline import Passes
'''
BUDGET, PICTURES, GPU = (
    [item.field for item in settings_of(PARTS[p])] for p in ("budget", "preprocess", "acceleration")
)
EVERY = [item.field for item in settings_of(Job) if not item.holds_settings and item.field != "model"]
DECIDED = {"passes", "recipe", "objective", "verify", "cost_table", "keep_initializer_inputs"}  # by distill itself
# what the commands of these names take, beside what is a parameter of the function itself
FUNCTIONS = {
    "optimize": [*EVERY, *PICTURES, *BUDGET],
    "distill": [*(name for name in EVERY if name not in DECIDED), *PICTURES, *BUDGET],
    "verify": [
        *("labels", "metric", "task", "eval_samples", "shapes", "states", "allow_random", "seed", "threads"),
        *(*PICTURES, *BUDGET, *GPU),
    ],
    "bench": ["shapes", "states", "seed", *PICTURES, *GPU],
    "explain": ["shapes", "seed", "threads", *PICTURES],
    "compare": [
        *("labels", "metric", "task", "eval_samples", "shapes", "states", "allow_random", "seed", "threads"),
        *("bench", "bench_seconds", *PICTURES),
    ],
}


def module() -> str:
    """The whole module."""
    return "\n\n".join([HEAD, *(typed_dict(name, names) for name, names in FUNCTIONS.items())])


def typed_dict(function: str, names: list[str]) -> str:
    """One class, with a docstring below each key for editors."""
    settings = declared()
    lines = [f"class {function.title()}Options(TypedDict, total=False):"]
    lines.append(f'    """Keywords of `onnxcomp.{function}`; all may be left out."""\n')
    for name in names:
        lines += key(name, written(settings[name]), settings[name].help)
    if function == "distill":
        for name, kind, words in of_the_pass():
            if name not in names:
                lines += key(name, kind, words)
    return "\n".join(lines) + "\n"


def key(name: str, kind: str, words: str) -> list[str]:
    """One key and what it means."""
    text = words[0].upper() + words[1:].removesuffix(".") + "."
    return [f"    {name}: {kind}", f'    """{text}"""' if len(text) < 110 else f'    """{folded(text)}\n    """']


def folded(text: str) -> str:
    """Words in lines that fit the module."""
    lines, line = [], ""
    for word in text.split():
        if len(line) + len(word) > 108:
            lines.append(line.rstrip())
            line = ""
        line += f"{word} "
    return "\n    ".join([*lines, line.rstrip()])


def written(item: Setting) -> str:
    """The type that a caller may give, as it is written."""
    kind = item.takes
    if not kind and item.choices:
        kind = f"Literal[{', '.join(quoted(word) for word in item.choices)}]"
    if not kind and item.hint is Size:
        kind = "int | str"
    kind = kind or of_hint(item.hint)
    return f"{kind} | None" if item.optional or item.hint is Any else kind


def of_the_pass() -> Iterator[tuple[str, str, str]]:
    """Name, type and meaning of each option of distill."""
    hints = typing.get_type_hints(find("distill"))
    for item in describe(find("distill")):
        yield item.name, of_hint(hints[item.name]), item.doc


def of_hint(hint: Any) -> str:
    """A type as it is written: lists may be given for tuples, texts for paths."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return " | ".join("None" if part is type(None) else of_hint(part) for part in parts)
    if origin is typing.Literal:
        return f"Literal[{', '.join(quoted(word) for word in parts)}]"
    if origin is tuple:
        return f"Sequence[{of_hint(parts[0])}]"
    if parts:
        return f"Mapping[{', '.join(map(of_hint, parts))}]"
    return {Path: "str | Path", Any: "object"}.get(hint, getattr(hint, "__name__", str(hint)))


def quoted(word: Any) -> str:
    """A value of a Literal."""
    return f'"{word}"' if isinstance(word, str) else str(word)


if __name__ == "__main__":
    MODULE.write_text(module(), encoding="utf-8")
