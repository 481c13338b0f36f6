"""How do changed parts of a graph look? A list of layers that the arrow keys walk, and each one before and after.

No script: the layers are radio buttons, and the page's style shows the part of the one that is chosen.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from onnxcomp.drawn import ChangedPart, DrawnGraph, DrawnNode
from onnxcomp.report.html_base import text

BOX, HIGH, ACROSS, DOWN, EDGE = 176.0, 34.0, 16.0, 20.0, 8.0  # width and height of a node, gaps, margin
LETTERS = 27  # that fit into a node
STATES = {"gone": "gone", "new": "new", "changed": "changed", "kept": "as it was"}
NOTE = (
    "Arrow keys walk from layer to layer. A part is the layer and what follows it up to the next; parts in which "
    "nothing but the values of weights changed are not here."
)


def parts(found: Sequence[ChangedPart], more: int, names: Mapping[str, str]) -> str:
    """The list and the pictures; empty where nothing changed.

    Args:
        more: how many parts are left out.
        names: a short name for each layer.
    """
    if not found:
        return ""
    rows = "".join(_part(part, names.get(part.layer, part.layer), not index) for index, part in enumerate(found))
    left = f'<p class="note">and {more} more layers, with smaller errors</p>' if more else ""
    legend = "".join(f'<li><span class="key {state}"></span>{word}</li>' for state, word in STATES.items())
    return (
        f'<ul class="legend">{legend}</ul><fieldset class="parts" style="--parts:{len(found)}">'
        f'<legend class="skip">Layers that changed</legend>{rows}</fieldset>{left}'
    )


def difference(part: ChangedPart) -> str:
    """Operators that went and came: `- BatchNormalization, + 2 QuantizeLinear`."""
    before, after = (Counter(n.op for n in side.nodes if n.op) for side in (part.before, part.after))
    if not after:
        return "removed"
    words = [f"- {_times(count, op)}" for op, count in (before - after).items()]
    words += [f"+ {_times(count, op)}" for op, count in (after - before).items()]
    return ", ".join(words) or "other constants or arrows"


def drawn(graph: DrawnGraph, label: str) -> str:
    """A graph as inline SVG, from top to bottom; what most paths follow stands at the left."""
    columns = _places(graph)
    across = max((column for column, _ in columns), default=0) + 1
    down = max((rank for _, rank in columns), default=0) + 1
    width, height = across * (BOX + ACROSS) + 2 * EDGE + ACROSS, down * (HIGH + DOWN) - DOWN + 2 * EDGE
    at = [(EDGE + column * (BOX + ACROSS), EDGE + rank * (HIGH + DOWN)) for column, rank in columns]
    arrows = "".join(_arrow(at[a], at[b]) for a, b in graph.edges)
    nodes = "".join(_node(node, *place) for node, place in zip(graph.nodes, at, strict=True))
    return (
        f'<svg role="img" class="net" width="{width:g}" height="{height:g}" viewBox="0 0 {width:g} {height:g}" '
        f'aria-label="{text(label)}">{arrows}{nodes}</svg>'
    )


def _part(part: ChangedPart, name: str, first: bool) -> str:
    sides = "".join(_side(word, side) for word, side in (("before", part.before), ("after", part.after)))
    title = text(part.layer or "what belongs to no layer")
    return (
        f'<div class="part"><label title="{title}"><input type=radio name=part{" checked" * first}> '
        f'<b>{text(name or "what belongs to no layer")}</b> <span class="dim">{text(difference(part))}</span></label>'
        f'<div class="view" role="group" aria-label="{title}">{sides}</div></div>'
    )


def _side(word: str, side: DrawnGraph) -> str:
    names = ", ".join(node.op for node in side.nodes if node.op)
    body = drawn(side, f"{word}: {names}") if side.nodes else '<p class="dim">no such layer</p>'
    more = f"; {side.more} more nodes are not drawn" if side.more else ""
    return f"<figure><figcaption>{word}{more}</figcaption>{body}</figure>"


def _times(count: int, op: str) -> str:
    return op if count == 1 else f"{count} {op}"


def _places(graph: DrawnGraph) -> list[tuple[int, int]]:
    """(column, rank) of each node: below all that it reads from, and what reads from nothing right above its reader."""
    into: dict[int, list[int]] = defaultdict(list)
    out: dict[int, list[int]] = defaultdict(list)
    for a, b in graph.edges:
        into[b].append(a)
        out[a].append(b)
    rank = [0] * len(graph.nodes)
    for _ in graph.nodes:  # longest paths; nodes from outside stand last in the list, so one sweep is not enough
        moved = [max((rank[a] + 1 for a in into[i]), default=0) for i in range(len(rank))]
        if moved == rank:
            break
        rank = moved
    rank = [r if into[i] or not out[i] else max(0, min(rank[b] for b in out[i]) - 1) for i, r in enumerate(rank)]
    rows: dict[int, list[int]] = defaultdict(list)
    ends = [bool(into[i]) and graph.nodes[i].state == "outside" for i in range(len(rank))]
    for index in sorted(range(len(rank)), key=lambda i: (not into[i], ends[i], i)):
        rows[rank[index]].append(index)
    column = {index: place for row in rows.values() for place, index in enumerate(row)}
    return [(column[i], rank[i]) for i in range(len(rank))]


def _arrow(start: tuple[float, float], end: tuple[float, float]) -> str:
    x, y = start[0] + BOX / 2, start[1] + HIGH
    to_x, to_y = end[0] + BOX / 2, end[1]
    far = to_y - y > HIGH + DOWN and abs(to_x - x) < 1
    bend = BOX / 2 + ACROSS if far else 0.0  # past the nodes between them
    path = f"M{x:g} {y:g}C{x + bend:g} {y + DOWN:g} {to_x + bend:g} {to_y - DOWN:g} {to_x:g} {to_y - 4:g}"
    return f'<path class="arrow" d="{path}"/><path class="head" d="M{to_x - 4:g} {to_y - 6:g}h8l-4 6z"/>'


def _node(node: DrawnNode, x: float, y: float) -> str:
    if not node.op:
        return (
            f'<rect class="node outside" x="{x:g}" y="{y + 6:g}" width="{BOX:g}" height="{HIGH - 12:g}" rx="11">'
            f"<title>{text(node.name)}</title></rect>"
            f'<text class="dim" x="{x + BOX / 2:g}" y="{y + 21:g}" text-anchor="middle">{text(_end(node.name))}</text>'
        )
    lines = [node.op, node.words] if node.words else [node.op]
    middle = y + (14 if node.words else 21)
    written = "".join(
        f'<text class="{"dim" if index else "op"}" x="{x + BOX / 2:g}" y="{middle + 13 * index:g}" '
        f'text-anchor="middle">{text(line if len(line) <= LETTERS else line[: LETTERS - 1] + "…")}</text>'
        for index, line in enumerate(lines)
    )
    about = f"{node.op} {node.name}: {STATES[node.state]}" + (f"; {node.words}" if node.words else "")
    return (
        f'<rect class="node {node.state}" x="{x:g}" y="{y:g}" width="{BOX:g}" height="{HIGH:g}" rx="5">'
        f"<title>{text(about)}</title></rect>{written}"
    )


def _end(name: str) -> str:
    """`from /very/long/name` with the middle left out."""
    way, _, rest = name.partition(" ")
    room = LETTERS - len(way) - 1
    return name if len(rest) <= room else f"{way} …{rest[1 - room :]}"
