"""How do the rows of real models read as a page? docs/real-models.md: one table a run, and what is not yet good."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import common

Row = dict[str, Any]
LOSS = 0.99
MOST_MB = 2000
EXITS = {0: "done", 13: "nothing could be improved"}


def write(rows: Sequence[Row], models: Sequence[str], runs: Sequence[str]) -> None:
    """Fill the part of the page between its marks."""
    known = {row["row"]: row for row in rows}
    found = {run: [known[f"{m} {run}"] for m in models if f"{m} {run}" in known] for run in runs}
    marks = _marks([row for run in runs for row in found[run]])
    text = [
        "Each row says under `on` where it was measured; time compares within one row only:\n\n"
        + "\n".join(f"- {mark}: {words}" for words, mark in marks.items())
    ]
    for run in runs:
        if found[run]:
            table = _table(found[run], found.get("onnxruntime", []), run, marks)
            text.append(f"## {run}\n\n{_summary(found[run], models)}\n\n{table}")
    text.append("## Not yet good\n\n" + ("\n".join(_open(found)) or "Nothing that these rows show."))
    common.write_page(common.ROOT / "docs" / "real-models.md", "rows", "\n\n".join(text))


def _marks(rows: Sequence[Row]) -> dict[str, str]:
    """A letter for each machine, the one with the most rows first."""
    machines = [row["machine"] for row in rows]
    ordered = sorted(set(machines), key=lambda words: (-machines.count(words), words))
    return {words: chr(ord("A") + number) for number, words in enumerate(ordered)}


def _summary(rows: Sequence[Row], models: Sequence[str]) -> str:
    done = [r for r in rows if "agreement" in r]
    kept = sum(r["agreement"] >= LOSS for r in done)
    faster = sum(r["time"] < 0.97 for r in done)
    missing = [m for m in models if m not in {row["model"] for row in rows}]
    not_run = f" Not run yet: {', '.join(missing)}." if missing else ""
    return (
        f"{len(rows)} of {len(models)} models: {len(done)} written, of which {kept} keep 99 % of the task's agreement "
        f"and {faster} take less time; {len(rows) - len(done)} ended without a model.{not_run}"
    )


def _table(rows: Sequence[Row], peers: Sequence[Row], run: str, marks: dict[str, str]) -> str:
    beside = {row["model"]: row for row in peers} if run == "default" else {}
    head = ["model", "size", "time", "agreement", "measure", "worst part", "MB", "s", "on"]
    head += ["onnxruntime.quantization: size, time, agreement"] if beside else []
    lines = []
    for row in rows:
        cells = [row["model"]]
        if "agreement" in row:
            worst = row["worst_part"]
            other = row.get("agreement_other_size")
            agreement = f"{row['agreement']:.3f}" + (f" (other size {other:.3f})" if other is not None else "")
            cells += [f"{row['size']:.1%}", f"{row['time']:.2f}", agreement, row["measure"]]
            cells.append(f"{worst[0]} {worst[1]} dB" if worst else "")
        else:
            cells += ["", "", "", row["measure"], _ending(row)]
        cells += [row.get("peak_memory_mb", ""), round(row["seconds"]), marks[row["machine"]]]
        if beside:
            peer = beside.get(row["model"], {})
            cells.append(
                f"{peer['size']:.1%}, {peer['time']:.2f}, {peer['agreement']:.3f}{_elsewhere(peer, row, marks)}"
                if "agreement" in peer
                else _cell(peer.get("said", ""))
            )
        lines.append(cells)
    return common.table(head, lines)


def _elsewhere(peer: Row, row: Row, marks: dict[str, str]) -> str:
    return "" if peer["machine"] == row["machine"] else f" (on {marks[peer['machine']]})"


def _ending(row: Row) -> str:
    code = row.get("exit_code")
    if code is None:  # the peer, or a run that was ended
        return _cell(row.get("said", ""))
    return _cell(EXITS[code] if code in EXITS else f"exit code {code}: {row.get('said', '')}")


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "/").split())[:110]


def _open(found: dict[str, list[Row]]) -> list[str]:
    """What is wrong or lossy, one line a row: errors of ours, slower files, agreement lost."""
    lines = []
    for run, rows in found.items():
        for row in rows if run != "onnxruntime" else []:
            faults = []
            if row.get("exit_code") in (None, 1) or (row["exit_code"] or 0) < 0 or (row["exit_code"] or 0) > 128:
                faults.append(_ending(row))
            if row.get("agreement", 1) < LOSS:
                faults.append(f'agreement {row["agreement"]:.3f}; its first line: "{_cell(row["said"])}"')
            if row.get("agreement_other_size", 1) < LOSS:
                faults.append(f"agreement {row['agreement_other_size']:.3f} at another size")
            if row.get("time", 0) > 1.03:
                faults.append(f"{row['time']:.2f} of the float model's time")
            if row.get("peak_memory_mb", 0) > MOST_MB:
                faults.append(f"{row['peak_memory_mb']} MB at its peak")
            if faults:
                lines.append(f"- {row['model']}, {run}: {'; '.join(faults)}")
    return lines
