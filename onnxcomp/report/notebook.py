"""What does a result look like in a notebook? A small table that takes the notebook's own colours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


def fragment(title: str, head: Sequence[str], rows: Iterable[Sequence[str]], notes: Iterable[str] = ()) -> str:
    """A piece of HTML: a line in bold, a table, and lines below it.

    Args:
        head: titles of the columns; no header where all are empty.
        rows: cells as text.
        notes: shown smaller.
    """
    parts = [f"<div><b>{escape(title)}</b>"]
    lines = [f"<tr>{''.join(f'<th>{escape(cell)}</th>' for cell in head)}</tr>"] if any(head) else []
    lines += [f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows]
    if lines:
        parts.append(f"<table>{''.join(lines)}</table>")
    parts += [f"<div><small>{escape(note)}</small></div>" for note in notes]
    return "".join([*parts, "</div>"])
