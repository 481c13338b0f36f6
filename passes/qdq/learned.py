"""What did one run of static quantization find out that another run on a copy of the graph need not find again?"""

from __future__ import annotations

from dataclasses import dataclass, field

from onnxcomp.passes.qdq.sensitivity import Noise
from onnxcomp.runtime.activations import Activation


@dataclass
class Learned:
    """What a run on a graph found out that holds for a copy of it.

    Attributes:
        seen: statistics by tensor name.
        noise: that each layer alone brings into the outputs, by node name.
        reached_db: what the placement taken kept before weights and biases were refined.
    """

    seen: dict[str, Activation] = field(default_factory=dict)
    noise: dict[str, Noise] = field(default_factory=dict)
    reached_db: float = 0.0
