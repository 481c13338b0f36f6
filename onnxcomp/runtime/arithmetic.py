"""How do integer kernels add up on this machine?"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from onnxcomp.runtime.session import open_session


def int8_arithmetic() -> str:
    """`exact` or `saturating`: what ONNX Runtime's u8*s8 kernels do on this machine, found by running one.

    Without VNNI, x86 adds two neighbouring products of u8*s8 in 16 bits (`vpmaddubsw`), which saturates at 32,767;
    255 * 127 * 2 = 64,770 does.
    """
    rows, size = 4, 64
    weight = numpy_helper.from_array(np.full((size, size), 127, np.int8), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "w"], ["y"])],
        "saturation",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [rows, size])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [rows, size])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    found = open_session(model.SerializeToString()).run({"x": np.full((rows, size), 255, np.uint8)})["y"]
    return "exact" if bool((found == 255 * 127 * size).all()) else "saturating"
