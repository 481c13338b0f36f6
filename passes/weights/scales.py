"""How are the scales of blocks stored in 8 bits themselves? Integers, and a float factor a row.

A float scale for every 32 weights of 4 bits is a fifth of what is stored (T. Dettmers et al., "QLoRA", 2023, call this
double quantization). The chain Cast -> Mul that gives the scales has nothing but constants at its inputs: ONNX Runtime
computes it once, when it loads the model.
"""

from __future__ import annotations

import numpy as np

from onnxcomp.graph.ir import Array, Graph, Tensor, elem_type

HIGHEST = 127
_SPARE_BITS = 8  # of a factor's mantissa, so that its products with 8-bit integers are exact


def split_scales(scales: Array) -> tuple[Array, Array]:
    """int8 [rows, blocks] and float32 factors [rows, 1] whose products are nearest to scales [rows, blocks].

    No integer is 0: a block that is tiny beside the largest of its row gets the smallest scale there is. What was
    made from such products comes back as it was.
    """
    largest = np.abs(scales).max(axis=1, keepdims=True, initial=0.0).astype(np.float32)
    factors = _short(np.maximum(largest / np.float32(HIGHEST), np.finfo(np.float32).tiny))
    integers = np.clip(np.rint(scales / factors), -HIGHEST, HIGHEST)
    integers = np.where(integers == 0, np.where(scales < 0, -1, 1), integers)
    return integers.astype(np.int8), factors


def snapped_scales(scales: Array) -> Array:
    """The float32 scales [rows, blocks] that `split_scales` stores."""
    integers, factors = split_scales(scales)
    found: Array = integers.astype(np.float32) * factors
    return found


def scale_bytes(rows: int, blocks: int, *, small: bool) -> int:
    """What the scales of so many rows take in the file."""
    return rows * (blocks + 4) if small else 4 * rows * blocks


def write_scales(graph: Graph, name: str, scales: Array, *, small: bool, times: float = 1.0) -> Tensor:
    """Scales [rows, blocks], each times a number, as an initializer or as nodes that make them at load.

    Args:
        small: they came from `snapped_scales`, and are stored in 8 bits.
    """
    if not small:
        return graph.add_constant(f"{name}_scale", scales * np.float32(times))
    integers, factors = split_scales(scales)
    codes = graph.add_constant(f"{name}_scale_q8", integers)
    factor = graph.add_constant(f"{name}_scale_row", factors * np.float32(times))
    float_type = elem_type(np.dtype(np.float32))
    cast = graph.add_node("Cast", [codes], name=f"{name}_scale_cast", attrs={"to": float_type})
    product = graph.add_node("Mul", [factor, cast.outputs[0]], name=f"{name}_scale_mul")
    for node in (cast, product):
        node.outputs[0].dtype, node.outputs[0].shape = np.dtype(np.float32), scales.shape
    made: Tensor = product.outputs[0]
    return made


def _short(values: Array) -> Array:
    """Positive float32 rounded up to fewer bits of mantissa."""
    mask = np.uint32(2**_SPARE_BITS - 1)
    rounded = (np.ascontiguousarray(values, np.float32).view(np.uint32) + mask) & ~mask
    found: Array = rounded.view(np.float32)
    return found
