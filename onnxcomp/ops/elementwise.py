"""Operators that work element by element, normalizations, reductions and random draws."""

from __future__ import annotations

from onnxcomp.ops.record import OpFacts

_ELEMENTWISE = frozenset(
    {
        "Abs",
        "Acos",
        "Acosh",
        "Add",
        "And",
        "Asin",
        "Asinh",
        "Atan",
        "Atanh",
        "BitShift",
        "BitwiseAnd",
        "BitwiseNot",
        "BitwiseOr",
        "BitwiseXor",
        "Cast",
        "CastLike",
        "Ceil",
        "Celu",
        "Clip",
        "Cos",
        "Cosh",
        "Div",
        "Elu",
        "Equal",
        "Erf",
        "Exp",
        "Floor",
        "Gelu",
        "Greater",
        "GreaterOrEqual",
        "HardSigmoid",
        "HardSwish",
        "IsInf",
        "IsNaN",
        "LeakyRelu",
        "Less",
        "LessOrEqual",
        "Log",
        "Max",
        "Mean",
        "Min",
        "Mish",
        "Mod",
        "Mul",
        "Neg",
        "Not",
        "Or",
        "PRelu",
        "Pow",
        "Reciprocal",
        "Relu",
        "Round",
        "Selu",
        "Sigmoid",
        "Sign",
        "Sin",
        "Sinh",
        "Softplus",
        "Softsign",
        "Sqrt",
        "Sub",
        "Sum",
        "Swish",
        "Tan",
        "Tanh",
        "ThresholdedRelu",
        "Where",
        "Xor",
    }
)
_NORMALIZING = frozenset(
    {
        "BatchNormalization",
        "GroupNormalization",
        "Hardmax",
        "InstanceNormalization",
        "LRN",
        "LayerNormalization",
        "LogSoftmax",
        "LpNormalization",
        "MeanVarianceNormalization",
        "RMSNormalization",
        "Softmax",
    }
)
# scale and shift, slopes
_VECTORS = {
    "BatchNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "RMSNormalization": (1,),
    "PRelu": (1,),
}
_REDUCING = frozenset(
    {
        "ArgMax",
        "ArgMin",
        "AveragePool",
        "CumSum",
        "GlobalAveragePool",
        "GlobalLpPool",
        "LpPool",
        "ReduceL1",
        "ReduceL2",
        "ReduceLogSum",
        "ReduceLogSumExp",
        "ReduceMean",
        "ReduceProd",
        "ReduceSum",
        "ReduceSumSquare",
    }
)
_RANDOM = frozenset(
    {
        "Bernoulli",
        "Dropout",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    }
)

RECORDS = (
    *(OpFacts(op, elementwise=True, vector_ports=_VECTORS.get(op, ())) for op in sorted(_ELEMENTWISE)),
    *(
        OpFacts(
            op,
            vector_ports=_VECTORS.get(op, ()),
            statistics_ports=(3, 4) if op == "BatchNormalization" else (),
        )
        for op in sorted(_NORMALIZING)
    ),
    *(OpFacts(op, shape_ports=(1,) if op.startswith(("Reduce", "Cum")) else ()) for op in sorted(_REDUCING)),
    *(OpFacts(op, random=True) for op in sorted(_RANDOM)),
    OpFacts("QuickGelu", "com.microsoft", elementwise=True),
    OpFacts("BiasGelu", "com.microsoft", elementwise=True, vector_ports=(1,)),
    OpFacts("FastGelu", "com.microsoft", elementwise=True, vector_ports=(1,)),
    OpFacts("Gelu", "com.microsoft", elementwise=True),
    OpFacts("SkipLayerNormalization", "com.microsoft", vector_ports=(2, 3, 4)),
    OpFacts("SimplifiedLayerNormalization", vector_ports=(1,)),
    OpFacts("SkipSimplifiedLayerNormalization", "com.microsoft", vector_ports=(2, 3)),
)
