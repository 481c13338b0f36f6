"""Operators that work element by element, normalizations, reductions and random draws."""

from __future__ import annotations

from onnxcomp.graph.ops.facts import OpFacts

_ELEMENTWISE = (
    "Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike Ceil "
    "Celu Clip Cos Cosh Div Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish IsInf IsNaN "
    "LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or PRelu Pow Reciprocal Relu Round Selu Sigmoid "
    "Sign Sin Sinh Softplus Softsign Sqrt Sub Sum Swish Tan Tanh ThresholdedRelu Where Xor"
).split()
_NORMALIZING = (
    "BatchNormalization InstanceNormalization GroupNormalization LayerNormalization RMSNormalization LRN LpNormalization "
    "MeanVarianceNormalization Softmax LogSoftmax Hardmax"
).split()
_REDUCING = (
    "AveragePool GlobalAveragePool LpPool GlobalLpPool ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMean "
    "ReduceProd ReduceSum ReduceSumSquare ArgMax ArgMin CumSum"
).split()
_RANDOM = "RandomNormal RandomNormalLike RandomUniform RandomUniformLike Multinomial Bernoulli Dropout".split()

RECORDS = (
    *(OpFacts(op, elementwise=True) for op in _ELEMENTWISE),
    *(OpFacts(op) for op in _NORMALIZING),
    *(OpFacts(op, shape_ports=(1,) if op.startswith(("Reduce", "Cum")) else ()) for op in _REDUCING),
    *(OpFacts(op, random=True) for op in _RANDOM),
    OpFacts("QuickGelu", "com.microsoft", elementwise=True),
    OpFacts("BiasGelu", "com.microsoft", elementwise=True),
)
