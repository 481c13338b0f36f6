"""How does an explanation of a pair of models read, on a screen and as a page of its own?"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from onnxcomp.report import html_base as html
from onnxcomp.report.tables import size_text

COLUMNS = ("layer", "operator", "own SQNR", "SQNR so far", "weights", "kernel", "why")
Layer = Mapping[str, Any]


def rows(found: Mapping[str, Any], most: int | None = 12) -> list[tuple[str, ...]]:
    """Cells of the layers that differ, worst own error first."""
    layers = [layer for layer in found["layers"] if not layer["equal"]]
    return [_cells(layer) for layer in layers[:most]]


def headline(found: Mapping[str, Any]) -> str:
    """What was compared, and on how much of the data: figures on all of them may be others."""
    few = found["samples"] < found["total"]
    seen = f"{found['samples']:,} of {found['total']:,} samples; --samples takes more" * few
    return f"{found['after']} against {found['before']}, {seen or _samples(found)}"


def _samples(found: Mapping[str, Any]) -> str:
    return f"{found['samples']:,} sample{'s' * (found['samples'] != 1)}"


def lines(found: Mapping[str, Any], shown: int | None = 12) -> list[str]:
    """Sentences below the table: who is to blame, what to do, what was left out."""
    layers: Sequence[Layer] = found["layers"]
    differ = [layer for layer in layers if not layer["equal"]]
    said = []
    if not differ:
        said.append(f"nothing differs in any of {len(layers)} layers on {_samples(found)}")
    elif found["culprits"]:
        blamed = differ[: found["culprits"]]
        said.append(f"most of the loss: {', '.join(layer['node'] for layer in blamed)}")
        for layer in blamed:
            said += [f"  {layer['node']}: {layer['remedy']}"] if layer["remedy"] else []
            said += [f"  {layer['node']} left as it was: --passes {shlex.quote(layer['advice'])}"] * bool(
                layer["advice"]
            )
        if len(blamed) > 1 and found["advice"]:
            said.append(f"all of them left as they were: --passes {shlex.quote(found['advice'])}")
        if found["advice"]:
            model, options = shlex.quote(found["before"]), found["options"]
            said.append(f"to run them: onnxcomp optimize {model} {options} --passes ...")
    if shown is not None and len(differ) > shown:
        said.append(f"{len(differ) - shown} more layers: --all, or --json FILE")
    said += [
        text for side, names in zip(("first", "second"), found["unmatched"], strict=True) for text in _lost(side, names)
    ]
    return [*said, *(f"note: {note}" for note in found["notes"])]


def page(found: Mapping[str, Any]) -> str:
    """One offline HTML page."""
    body = (
        f"<header><h1>onnxcomp explain</h1><p class='dim'>{html.text(headline(found))}</p></header>"
        f"<main>{section(found)}</main>"
    )
    return html.page("onnxcomp explain", body)


def section(found: Mapping[str, Any]) -> str:
    """The part of a page that holds the layers and what to do about them."""
    cells = [[html.text(cell) for cell in row] for row in rows(found, None)]
    listed = "".join(f"<p>{html.text(line)}</p>" for line in lines(found, None))
    return html.section(
        "explain", "Which layers lose how much, and why", html.table(list(COLUMNS), cells, right=(2, 3, 4, 5)) + listed
    )


def _cells(layer: Layer) -> tuple[str, ...]:
    before, after = layer["op"]
    size = f"{size_text(layer['bytes'][0])} -> {size_text(layer['bytes'][1])}"
    times = layer["microseconds"]
    spent = "" if times is None else f"{times[0]:.0f} -> {times[1]:.0f} us"
    operator = before if before == after else f"{before} -> {after}"
    return (
        layer["node"],
        operator,
        _db(layer["own_sqnr_db"]),
        _db(layer["accumulated_sqnr_db"]),
        size,
        spent,
        layer["why"],
    )


def _db(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} dB"


def _lost(side: str, names: Sequence[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return [f"only in the {side} model, or not found again: {', '.join(names[:4])}{more}"]
