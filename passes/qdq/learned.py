"""What did one run of static quantization find out that another run on a copy of the graph need not find again?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from onnxcomp.graph.ir import Node
from onnxcomp.passes.qdq.emit import Written
from onnxcomp.passes.qdq.sensitivity import Noise
from onnxcomp.passes.qdq.weights import Integers
from onnxcomp.runtime.activations import Activation


@dataclass
class Learned:
    """What a run on a graph found out that holds for a copy of it.

    Attributes:
        seen: statistics by tensor name.
        noise: that each layer alone brings into the outputs, by node name.
        reached_db: what the placement taken kept before weights and biases were refined.
        refined: weights and biases of layers once they were, by node name.
    """

    seen: dict[str, Activation] = field(default_factory=dict)
    noise: dict[str, Noise] = field(default_factory=dict)
    reached_db: float = 0.0
    refined: dict[str, Integers] = field(default_factory=dict)

    def refine(self, layers: Mapping[Node, Integers], written: Written) -> list[Node]:
        """Give layers the weights and biases that they had in the run before; those whose scales are others are left.

        What a layer gets from those before it differs a little between placements. That is measured with the whole,
        and rounding all of them anew takes as long as everything else.
        """
        done = []
        for node, layer in layers.items():
            known = self.refined.get(node.name)
            if known is None or not np.array_equal(known.scales, layer.scales):
                continue
            layer.integers, layer.bias = known.integers, known.bias
            if node in written.weights:
                written.weights[node].values = layer.tensor()
            if node in written.biases and layer.bias is not None:
                written.biases[node].store(layer.bias)
            done.append(node)
        return done
