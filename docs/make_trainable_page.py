"""What does the table of operators in docs/trainable.md say? This writes it from the rules that give training forms.

python docs/make_trainable_page.py          # tests/test_docs.py fails while the page is out of date
"""

from __future__ import annotations

import inspect
from pathlib import Path

from onnxcomp.distill.forms import rules
from onnxcomp.ops.facts import load_operators
from onnxcomp.ops.gradients.common import keep

RULES = rules(load_operators())
PAGE = Path(__file__).resolve().parent / "trainable.md"
BEGIN, END = "<!-- operators:begin -->\n", "<!-- operators:end -->"


def page() -> str:
    """The page with its table of operators made anew."""
    text = PAGE.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    return f"{head}{BEGIN}{operators()}\n{END}{rest.split(END, 1)[1]}"


def operators() -> str:
    """Operators that are right as they stand in one line, a table of the others."""
    own = sorted(_name(key) for key, rule in RULES.items() if rule is keep)
    rows = [f"| {_name(key)} | {_first_line(rule)} |" for key, rule in sorted(RULES.items()) if rule is not keep]
    return "\n".join([f"Right as they stand: {', '.join(own)}.", "", "| operator | in training |", "|---|---|", *rows])


def _name(key: tuple[str, str]) -> str:
    domain, op = key
    return f"{domain}.{op}" if domain else op


def _first_line(rule: object) -> str:
    return (inspect.getdoc(rule) or "").splitlines()[0].replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
