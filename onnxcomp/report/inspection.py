"""The screen of `onnxcomp inspect`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onnxcomp.report.tables import count_text, size_text, table

if TYPE_CHECKING:
    from rich.console import Console

MOST_LAYERS = 20


def show(found: Any, console: Console, *, everything: bool = False) -> None:
    """Print an `onnxcomp.inspection.Inspection`."""
    from rich.text import Text

    stats = found.stats
    console.print(table(("", ""), found.facts()))
    layers = sorted(found.layers, key=lambda layer: -layer.macs)
    shown = found.layers if everything else [x for x in found.layers if x in layers[:MOST_LAYERS]]
    rows = [
        (x.node, x.op, x.precision, count_text(x.parameters), size_text(x.bytes), count_text(x.macs), _share(x, stats))
        for x in shown
    ]
    console.print()
    console.print(
        table(("layer", "operator", "stored as", "parameters", "bytes", "MACs", ""), rows, right=(3, 4, 5, 6))
    )
    if len(shown) < len(found.layers):
        console.print(
            Text(f"  the {len(shown)} of {len(found.layers)} layers with most MACs: --all shows all", style="dim")
        )
    console.print()
    console.print(table(("pass", "outputs", "could work on"), [(p.name, p.guarantee, p.what) for p in found.prospects]))
    for note in found.notes:
        console.print(Text(f"note: {note}", style="dim"))


def show_groups(found: Any, console: Console) -> None:
    """Print the coupled groups of an `onnxcomp.inspection.Inspection`."""
    from rich.text import Text

    rows = [
        (
            group.name,
            f"{group.units} {group.kind}" + (f" of {group.channels_each}" if group.channels_each > 1 else ""),
            f"{len(group.weights)}",
            f"{group.macs_share:.1%}",
            "several layers add up in it" if group.stream else group.inexact,
        )
        for group in found.groups
    ]
    console.print(table(("group", "units", "weights", "MACs", ""), rows, right=(2, 3)))
    console.print(Text(f"{found.prunable_macs_share:.1%} of the MACs scale with the width of some group"))
    if found.kept:
        console.print()
        console.print(table(("outputs that stay", "because"), list(found.kept.items())))
    for note in found.notes:
        console.print(Text(f"note: {note}", style="dim"))


def _share(layer: Any, stats: Any) -> str:
    return f"{layer.macs / stats.macs:.1%}" if stats.macs else ""
