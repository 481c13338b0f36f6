"""What becomes of a unit that is zero throughout an input? Rules of the records, see `OpFacts.zeros`."""

from __future__ import annotations

from onnxcomp.ops.record import ZeroView


def kept(view: ZeroView) -> set[int]:
    """f(0) = 0: what is zero in the first input is zero in the output."""
    return view.zero(0) if view.ports else set()


def one(view: ZeroView) -> set[int]:
    """A product: one zero factor is enough."""
    return set().union(*(view.zero(port) for port in view.ports))


def every(view: ZeroView) -> set[int]:
    """A sum: every summand must be zero, of those that vary with the unit and those that do not."""
    carried: set[int] = set().union(*(view.units(port) for port in view.ports))
    for port in view.ports:
        carried &= view.zero(port)
    return carried


def parts(view: ZeroView) -> set[int]:
    """Parts side by side: zero wherever a part carries the unit."""
    carried: set[int] = set().union(*(view.units(port) for port in view.ports))
    for port in view.ports:
        carried -= view.units(port) - view.zero(port)
    return carried


def scaled_and_shifted(view: ZeroView) -> set[int]:
    """BatchNormalization: scale and shift decide, for the statistics are fixed; those that it hands out live on."""
    if len(view.node.outputs) > 1:
        return set()
    return view.zero(1) & view.zero(2)
