"""Static 8-bit quantization: which nodes run on integers, with which ranges, written as Q and DQ nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from onnxcomp.errors import DataError
from onnxcomp.graph.ir import Graph
from onnxcomp.manager.base import Guarantee, Need, Outcome, Pass, PassContext, Range, Stage, option
from onnxcomp.passes.qdq.protect import Protector
from onnxcomp.passes.qdq.quantizer import Quantizer
from onnxcomp.targets.base import Target
from onnxcomp.targets.table import find


@dataclass(frozen=True)
class QuantizeQdq(Pass):
    """Convolutions and matrix products on 8-bit integers, activations in ranges measured on calibration data.

    Weights: symmetric int8, one scale a channel. Activations: unsigned with a zero point on CPU, signed with zero
    point 0 on TensorRT, one scale a tensor, shared through operators that only move data. Written as QuantizeLinear
    and DequantizeLinear where the target fuses them into integer kernels (B. Jacob et al., CVPR 2018).
    """

    name: ClassVar[str] = "quantize-qdq"
    guarantee: ClassVar[Guarantee] = Guarantee.LOSSY
    stage: ClassVar[Stage] = Stage.INTEGER
    needs: ClassVar[frozenset[Need]] = frozenset({Need.DATA})

    activations: Literal["auto", "minmax", "percentile", "entropy", "mse", "l3"] = option(
        "auto",
        "how activation ranges are chosen: least error squared, or to the third power, for which values cut off count "
        "more; auto: whichever of these two keeps more of the outputs",
        search=("auto", "minmax", "percentile", "entropy"),
    )
    percentile: float = option(
        99.999, "share of values inside the range, for activations=percentile", above=50, maximum=100
    )
    isa: Literal["portable", "native"] = option(
        "portable", "weights safe on every x86, or best on CPUs with VNNI (and ARM, GPUs)"
    )

    rounding: Literal["compensated", "nearest"] = option(
        "compensated", "weights whose rounding errors make good for one another, or each to the nearest level"
    )
    bias_correction: bool = option(True, "let biases take up the error of each layer's mean output")

    placement: Literal["measured", "table"] = option(
        "measured",
        "integers where they are faster on this machine (where times are known), or wherever a kernel exists",
        search=("measured", "table"),
    )
    ranges: str = option(
        "", "a file of activation ranges to take in place of measured ones: AIMET encodings, ONNX Runtime's calibration"
    )
    min_sqnr: float = option(
        20.0,
        "dB that the outputs keep before refinement: layers that cost most stay float (with bits=4: keep 8 bits); "
        "0 lets all run on integers",
        search=Range(0.0, 30.0),
    )
    agreement: float = option(
        0.0,
        "share of the original's decisions that is kept, where they can be told: layers that cost most stay float "
        "until then; 0: no limit",
        minimum=0,
        maximum=1,
        search=(0.0, 0.99),
    )
    bits: Literal[8, 4] = option(
        8, "bits of a weight in the file; it is decoded at load, and kernels multiply 8-bit integers either way"
    )
    average: float = option(
        4.25,
        "with bits=4: bits a weight on average, so that those that cost most keep 8",
        minimum=0,
        maximum=8,
    )

    @classmethod
    def suits(cls, target: Target) -> bool:  # noqa: D102 (as in Pass)
        return bool(target.kernels)

    def run(self, graph: Graph, context: PassContext) -> Outcome:
        """Quantize in place.

        Raises:
            DataError: there is no calibration data, or the file of ranges cannot be used.
            UsageError: a glob matches nothing.
            ModelError: ONNX Runtime cannot run the model.
        """
        samples = context.calibration
        if samples is None or not len(samples):
            raise DataError("quantize-qdq needs calibration data", where="pass quantize-qdq", do="give it with --data")
        target = find(context.target)
        if self.agreement and context.agreement is not None:
            return Protector(self, context, samples, target, context.agreement).run(graph)
        return Quantizer(self, graph, context, samples, target).run()
