"""What is known of each operator, and why not the rest? This writes docs/operators.md from the records.

python docs/make_operators_page.py          # tests/test_docs.py fails while the page is out of date

Every empty cell is a decision: GAPS gives its reason, for whole families or single operators. tests/test_ops_table.py
fails for a cell that is empty without a reason, and for a reason that no empty cell needs any more.
"""

from __future__ import annotations

from pathlib import Path

import onnx

from onnxcomp.distill.forms import rule_of
from onnxcomp.graph.ir import Node
from onnxcomp.ops import tables
from onnxcomp.ops.facts import load_operators
from onnxcomp.ops.record import OpFacts, no_macs, no_weights

PAGE = Path(__file__).resolve().parent / "operators.md"
OPERATORS = load_operators()
FAMILIES = {module.__name__.rpartition(".")[2]: module.RECORDS for module in tables.FAMILIES}
SHORT = {"com.microsoft": "ms.", "ai.onnx.ml": "ml.", "": ""}

ASPECTS = {
    "weights": "which inputs are weights, and what their axes mean",
    "MACs": "multiply-accumulates of one run",
    "types": "types and shapes of the outputs: `ONNX` by its own inference, else a rule",
    "units": "which channels, heads, neurons leave together",
    "zeros": "which units are zero behind it",
    "no-op": "when it hands on a tensor unchanged",
    "training": "a form with a right gradient",
    "half": "ports that may be half precision: `ONNX` by its own schema, else a rule",
}

# aspect -> reason -> families and operators (those of other domains under their short names)
GAPS: dict[str, dict[str, str]] = {
    "weights": {
        "nothing in it is multiplied with a weight": "normalization activations arithmetic reductions pooling movement "
        "reshape sizes drawing Attention ms.MultiHeadAttention ms.GroupQueryAttention RotaryEmbedding "
        "ms.RotaryEmbedding",
        "a table that is read by more than a row": "GatherElements GatherND ScatterElements ScatterND OneHot",
        "what it makes into integers is computed": "QuantizeLinear ms.QuantizeLinear DynamicQuantizeLinear",
        "trees and the like are stored in attributes": "classical",
    },
    "MACs": {
        "less than one multiplication an element, or none": "normalization activations arithmetic reductions pooling "
        "movement reshape lookup sizes drawing quantization RotaryEmbedding ms.RotaryEmbedding",
        "comparisons, not products": "classical",
    },
    "types": {},
    "units": {
        "its weight is packed in blocks or integers: prune before quantizing": "ConvInteger QLinearConv MatMulInteger "
        "QLinearMatMul ms.QGemm ms.DynamicQuantizeMatMul ms.MatMulIntegerToFloat ms.MatMulNBits ms.DynamicQuantizeLSTM "
        "ms.QAttention ms.GatherBlockQuantized DynamicQuantizeLinear",
        "its values mean places or classes: nothing of them can leave": "OneHot NonZero classical",
        "sizes: the analysis follows them to the Reshape that reads them": "Shape Size",
        "what is drawn depends on how many are drawn": "drawing",
    },
    "zeros": {
        "its weight is packed in blocks or integers": "ConvInteger QLinearConv MatMulInteger QLinearMatMul "
        "ms.QGemm ms.DynamicQuantizeMatMul ms.MatMulIntegerToFloat ms.MatMulNBits ms.DynamicQuantizeLSTM ms.QAttention "
        "ms.GatherBlockQuantized",
        "zeros are moved by a mean or a shift, or counted in a sum of exponentials": "GroupNormalization "
        "LayerNormalization RMSNormalization SimplifiedLayerNormalization ms.SkipLayerNormalization "
        "ms.SkipSimplifiedLayerNormalization MeanVarianceNormalization Softmax LogSoftmax Hardmax",
        "it gives something else for zero": "Acos Acosh BitwiseNot Cos Cosh Exp HardSigmoid IsInf IsNaN Log Not "
        "Reciprocal Sigmoid Softplus Pow Mod Or Xor Equal Greater GreaterOrEqual Less LessOrEqual BitShift BitwiseAnd "
        "BitwiseOr BitwiseXor ReduceLogSum ReduceLogSumExp",
        "0 / 0 is no zero": "Div",
        "places, not values": "ArgMax ArgMin TopK sizes OneHot",
        "nothing leaves what it reads": "Trilu GatherElements GatherND ScatterElements ScatterND",
        "a zero point may stand for zero": "quantization",
        "random": "drawing",
        "nothing of it can leave": "classical",
    },
    "no-op": {
        "weights that would make it the identity are not looked for": "convolution products attention recurrent "
        "normalization",
        "the identity for single values of its inputs or attributes only, which exporters do not write": "PRelu Pow "
        "Mod Mean Where Xor Clip LeakyRelu Elu Celu Selu Shrink ThresholdedRelu BitShift BitwiseAnd BitwiseOr "
        "BitwiseXor Resize Upsample DepthToSpace SpaceToDepth Trilu pooling reductions",
        "it changes every value, or nearly every": "Acos Acosh Asin Asinh Atan Atanh Cos Cosh Erf Exp Gelu HardSigmoid "
        "HardSwish IsInf IsNaN Log Mish Reciprocal Sigmoid Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh ms.QuickGelu "
        "ms.Gelu ms.FastGelu ms.BiasGelu Equal Greater GreaterOrEqual Less LessOrEqual",
        "it gives other values than it reads": "lookup sizes drawing quantization classical",
    },
    "training": {
        "integers have no gradient": "ConvInteger QLinearConv MatMulInteger QLinearMatMul ms.QGemm "
        "ms.DynamicQuantizeMatMul ms.MatMulIntegerToFloat ms.DynamicQuantizeLSTM ms.QAttention ms.GatherBlockQuantized "
        "ms.QuantizeLinear "
        "ms.DequantizeLinear DynamicQuantizeLinear BitwiseNot Not And Or Xor BitShift BitwiseAnd BitwiseOr BitwiseXor "
        "ArgMax ArgMin OneHot IsInf IsNaN",
        "steps, whose gradient is zero": "Mod Equal Greater GreaterOrEqual Less LessOrEqual",
        "rounding is trained through by the engine itself": "QuantizeLinear DequantizeLinear",
        "no form is written yet: what stands before it stays as it is, and the report says so": "ms.Attention "
        "ms.MultiHeadAttention ms.GroupQueryAttention ms.EmbedLayerNormalization Acos Asin Atan Upsample",
        "sizes and constants: nothing learned stands before them": "sizes",
        "what is drawn has no gradient": "drawing",
        "trees have none": "classical",
    },
    "half": {
        "integers, truth values": "ConvInteger QLinearConv MatMulInteger BitwiseNot Not And Or Xor BitShift BitwiseAnd "
        "BitwiseOr BitwiseXor DynamicQuantizeLinear",
        "the runtime's kernel is float32": "ms.QGemm ms.DynamicQuantizeMatMul ms.MatMulIntegerToFloat ms.MatMulNBits "
        "ms.DynamicQuantizeLSTM ms.QAttention ms.GatherBlockQuantized ms.QuantizeLinear ms.DequantizeLinear",
        "ONNX defines it in float32": "ml.Scaler ml.Normalizer ml.Imputer ml.Binarizer ml.LabelEncoder "
        "ml.CategoryMapper ml.OneHotEncoder ml.ArrayFeatureExtractor ml.FeatureVectorizer ml.LinearRegressor "
        "ml.SVMRegressor ml.TreeEnsembleRegressor ml.LinearClassifier ml.SVMClassifier ml.TreeEnsembleClassifier",
    },
}


def cells(record: OpFacts) -> dict[str, str]:
    """What the record, or ONNX for it, says of each aspect: a word, or nothing."""
    schema = _schema(record)
    inferred = schema is not None and schema.has_type_and_shape_inference_function
    halves = schema is not None and any("tensor(float16)" in t.allowed_type_strs for t in schema.type_constraints)
    weighted = record.weights is not no_weights
    trained = rule_of(Node(record.op, "", {}, [], [], domain=record.domain), OPERATORS)
    found = {
        "weights": "yes" if weighted else "packed" if record.packed else "",
        "MACs": "yes" if record.macs is not no_macs else "",
        "types": "rule" if record.shape is not None else "ONNX" if inferred else "",
        "units": "rule" if record.coupling is not None else "",
        "zeros": "rule" if record.zeros is not None else "by weights" if weighted else "",
        "no-op": "rule" if record.noop is not None else "",
        "training": "" if trained is None else "as it is" if trained.__name__ == "keep" else "form",
        "half": "rule" if record.half is not None else "ONNX" if halves else "",
    }
    assert found.keys() == ASPECTS.keys()
    return found


def name_of(record: OpFacts) -> str:
    """As the page names an operator."""
    return SHORT[record.domain] + record.op


def reason(record: OpFacts, family: str, aspect: str) -> list[str]:
    """Why a cell is empty: exactly one reason, if the page is right."""
    return [why for why, names in GAPS[aspect].items() if {family, name_of(record)} & set(names.split())]


def page() -> str:
    """The whole page."""
    lines = [
        "# What is known of operators",
        "",
        "Made by `python docs/make_operators_page.py` from the records in `onnxcomp/ops/`, one an operator, one file a",
        "family. All tables that passes, costs, pruning, training and half precision use come from them, and packages",
        "add their own by the entry point `onnxcomp.operators`. `ms.` is com.microsoft, `ml.` is ai.onnx.ml. A number",
        "stands for the reason why a cell is empty.",
        "",
        *(f"- **{aspect}**: {what}" for aspect, what in ASPECTS.items()),
    ]
    numbers: dict[str, int] = {}
    for family, records in FAMILIES.items():
        lines += [
            "",
            f"## {family}",
            "",
            "| operator | " + " | ".join(ASPECTS) + " |",
            "|---" * (len(ASPECTS) + 1) + "|",
        ]
        for record in sorted(records, key=lambda one: (one.domain, one.op)):
            row = []
            for aspect, cell in cells(record).items():
                why = [] if cell else reason(record, family, aspect)
                row.append(cell or str(numbers.setdefault(why[0], len(numbers) + 1) if why else "?"))
            lines.append(f"| {name_of(record)} | {' | '.join(row)} |")
    lines += ["", "## Why cells are empty", "", *(f"{number}. {why}" for why, number in numbers.items())]
    return "\n".join(lines) + "\n"


def _schema(record: OpFacts) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(record.op, record.domain)
    except onnx.defs.SchemaError:
        return None


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
