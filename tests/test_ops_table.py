"""Is every empty cell of the table of operators a decision with a reason, and every record used?"""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

SCRIPT = runpy.run_path(str(Path(__file__).resolve().parent.parent / "docs" / "make_operators_page.py"))
FAMILIES, GAPS, ASPECTS = SCRIPT["FAMILIES"], SCRIPT["GAPS"], SCRIPT["ASPECTS"]
HOLES = [
    (family, record, aspect)
    for family, records in FAMILIES.items()
    for record in records
    for aspect, cell in SCRIPT["cells"](record).items()
    if not cell
]


def test_every_empty_cell_has_one_reason() -> None:
    wrong = [
        f"{SCRIPT['name_of'](record)}, {aspect}: {why or 'no reason'}"
        for family, record, aspect in HOLES
        if len(why := SCRIPT["reason"](record, family, aspect)) != 1
    ]
    assert not wrong, "write a rule, or a reason into docs/make_operators_page.py:\n" + "\n".join(wrong)


@pytest.mark.parametrize("aspect", ASPECTS)
def test_no_reason_stands_for_a_cell_that_is_filled(aspect: str) -> None:
    names = {name for text in GAPS[aspect].values() for name in text.split()}
    needed = {n for family, record, a in HOLES if a == aspect for n in (family, SCRIPT["name_of"](record))}
    assert not names - needed, f"of {aspect}: {sorted(names - needed)}"


def test_page_of_operators_is_up_to_date() -> None:
    assert SCRIPT["PAGE"].read_text(encoding="utf-8") == SCRIPT["page"](), "run python docs/make_operators_page.py"
