"""Why is a weight no plain initializer, and what would make it one?"""

from __future__ import annotations

from onnxcomp.graph.ir import Constant, Node


def hidden_weight(node: Node) -> Node | None:
    """The node that hands a stored tensor on to this one, all constants behind it; None if there is none."""
    return next((t.producer for t in node.inputs if t.name and t.producer and _is_stored(t.producer)), None)


def why_computed(maker: Node) -> str:
    """What is to be said of a weight that a node makes, from the verb on."""
    if maker.op == "DequantizeLinear":
        return "is quantized already"
    return how_to_plain(maker) if _is_stored(maker) else f"is computed by {maker}"


def how_to_plain(maker: Node) -> str:
    """Why a stored weight that a node hands on is left, and what would help, from the verb on."""
    for tensor in maker.inputs:
        others = [node for node in tensor.consumers if node is not maker] if isinstance(tensor, Constant) else []
        if others and tensor.size > 1:
            return f"comes through {maker}, and {others[0]} reads it, too: plain, it would be stored twice"
    stored_small = maker.op in ("Cast", "CastLike")
    how = "fold-constants{unpack=true}" if stored_small else "fold-constants"
    return f"comes through {maker}: {how} makes it a plain one"


def _is_stored(maker: Node | None) -> bool:
    """Whether nothing but constants stands behind a node."""
    while maker is not None:
        computed = [t for t in maker.inputs if t.name and not isinstance(t, Constant)]
        if not computed and not maker.bodies:
            return True
        maker = computed[0].producer if len(computed) == 1 else None
    return False
