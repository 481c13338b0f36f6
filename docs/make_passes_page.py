"""What does docs/passes.md say? This writes it from the pass classes: docstrings, guarantees and option fields.

python docs/make_passes_page.py          # tests/test_docs.py fails while the page is out of date
"""

from __future__ import annotations

import inspect
from pathlib import Path

from onnxcomp.manager import registry
from onnxcomp.manager.base import Guarantee, Pass
from onnxcomp.manager.options import OptionInfo, describe
from onnxcomp.manager.spelling import format_value
from onnxcomp.report.passes import search_words

PAGE = Path(__file__).resolve().parent / "passes.md"

HEAD = """# Passes

<!-- Made by docs/make_passes_page.py from the code; edit the docstrings and option fields there. -->

A spec chains passes: `fuse-batchnorm,prune-weights{ratio=0.5,exclude=["head.*"]},quantize-qdq{activations=mse}`.
Values are numbers, true or false, bare words, "quoted text", and [lists].

Every pass has `include` and `exclude`: lists of globs that match names of nodes or of their weights. A glob that
matches nothing is an error.
"""
COMMON = ("include", "exclude")


def page() -> str:
    """The whole page as Markdown."""
    return "\n".join([HEAD, *(section(registry.find(name)) for name in registry.BUILTIN)])


def section(cls: type[Pass]) -> str:
    """One pass: what it does, what it promises and needs, its options."""
    options = [o for o in describe(cls) if o.name not in COMMON]
    needs = ", ".join(sorted(need.value for need in cls.needs))
    lines = [f"## {cls.name}", "", inspect.getdoc(cls) or "", "", promise(cls) + (f" Needs {needs}." if needs else "")]
    if options:
        lines += ["", "| option | type | default | meaning |", "|---|---|---|---|", *map(row, options)]
    tried = [f"`{option.name}`: {option.search}" for option in options if option.search]
    if tried:
        lines += ["", f"A search tries {'; '.join(tried)}."]
    if words := search_words(cls):
        lines += ["", words]
    return "\n".join([*lines, ""])


def promise(cls: type[Pass]) -> str:
    """The guarantee in words; for a close pass with its tolerance."""
    words = {
        Guarantee.EXACT: "outputs are bit-equal; checked.",
        Guarantee.CLOSE: f"outputs differ by at most {cls.tolerance:g} of their largest magnitude; checked.",
        Guarantee.LOSSY: "judged by your budget.",
    }
    depends = " With some options it promises more or less." if "promises" in vars(cls) else ""
    return f"Guarantee: **{cls.guarantee.value}**, {words[cls.guarantee]}{depends}"


def row(option: OptionInfo) -> str:
    """One table row of an option."""
    default = "not set" if option.default is None else f"`{format_value(option.default)}`"
    cells = (f"`{option.name}`", option.type, default, option.doc)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
