"""Is a layer that was damaged the first that `onnxcomp explain` names? Twenty seeded damages of each kind a model.

    python benchmarks/explain_damage.py [resnet20 minilm mobilenet vit digits] [--cases 20] [--tools PYTHON]

Every case draws a form (the float model, or quantize_static's with a scale a channel), a layer, how large the damage
is, and a tool that rewrites the damaged file: none, other names everywhere, ONNX Runtime's own optimizer, onnxsim,
onnxslim. The last two are asked of a Python that has them (--tools; `pip install onnxsim onnxslim`). A damaged range
or zero point of an activation belongs to every layer that reads it: one of them must be first. minilm's vocabulary
and depth are cut so that a case takes a second; resnet20 and minilm need ONNXCOMP_TEST_ASSETS. Rows go to
results/explain_damage.json.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import common
import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto, NodeProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from onnxcomp.explanation.explain import explain

Array: TypeAlias = np.ndarray[Any, Any]
Feeds: TypeAlias = dict[str, Array]

PRODUCTS = ("Conv", "MatMul", "Gemm")
SAMPLES = 8
TOOLS = ("none", "renamed", "ONNX Runtime", "onnxsim", "onnxslim")
REWRITE = {
    "onnxsim": "import onnx, onnxsim, sys\nonnx.save(onnxsim.simplify(onnx.load(sys.argv[1]))[0], sys.argv[2])",
    "onnxslim": "import onnx, onnxslim, sys\nonnx.save(onnxslim.slim(onnx.load(sys.argv[1])), sys.argv[2])",
}


class UnfitError(Exception):
    """This damage cannot be done to this layer."""


@dataclass
class Site:
    """One product of a model and what it reads.

    Attributes:
        name: of the node in the float model.
        weight, bias: initializers: floats, or the integers in front of DequantizeLinear.
        scale, zero: initializers of the weight's DequantizeLinear.
        quantize, dequantize: the nodes on its input.
    """

    name: str
    node: NodeProto
    weight: str
    bias: str | None
    scale: str | None = None
    zero: str | None = None
    quantize: NodeProto | None = None
    dequantize: NodeProto | None = None


class Model:
    """A model with its initializers by name and its nodes by output."""

    def __init__(self, proto: ModelProto) -> None:
        self.proto = ModelProto()
        self.proto.CopyFrom(proto)
        graph = self.proto.graph
        self.tensors = {t.name: t for t in graph.initializer}
        self.makers = {name: node for node in graph.node for name in node.output}

    def value(self, name: str) -> Array:
        return numpy_helper.to_array(self.tensors[name]).copy()

    def put(self, name: str, values: Array, dtype: Any = None) -> None:
        made = np.array(values, dtype or self.value(name).dtype, order="C")  # a scale without axes keeps none
        self.tensors[name].CopyFrom(numpy_helper.from_array(made, name))

    def origin(self, name: str) -> tuple[str | None, NodeProto | None]:
        """The initializer that a tensor is or is dequantized from."""
        if name in self.tensors:
            return name, None
        node = self.makers.get(name)
        if node is not None and node.op_type == "DequantizeLinear" and node.input[0] in self.tensors:
            return node.input[0], node
        return None, None

    def sites(self) -> Iterator[Site]:
        for node in self.proto.graph.node:
            if node.op_type not in PRODUCTS:
                continue
            weight, decoded = self.origin(node.input[1])
            if weight is None or len(self.tensors[weight].dims) < 2:
                continue
            site = Site(node.name, node, weight, self._bias(node))
            if decoded is not None:
                site.scale, site.zero = decoded.input[1], decoded.input[2] if len(decoded.input) > 2 else None
            back = self.makers.get(node.input[0])
            if back is not None and back.op_type == "DequantizeLinear":
                front = self.makers.get(back.input[0])
                site.quantize, site.dequantize = front, back
            yield site

    def _bias(self, node: NodeProto) -> str | None:
        if len(node.input) > 2:
            return self.origin(node.input[2])[0]
        name = node.output[0]
        for _ in range(3):  # over the Q and DQ that a tool put behind the product
            reader = next((n for n in self.proto.graph.node if name in n.input), None)
            if reader is None:
                return None
            if reader.op_type == "Add":
                other = next(i for i in reader.input if i != name)
                found = self.origin(other)[0]
                return found if found is not None and len(self.tensors[found].dims) == 1 else None
            if reader.op_type not in ("QuantizeLinear", "DequantizeLinear"):
                return None
            name = reader.output[0]
        return None

    def readers(self, tensor: str) -> list[str]:
        """Products that read what one DequantizeLinear gives."""
        return [n.name for n in self.proto.graph.node if n.op_type in PRODUCTS and tensor in n.input]


Damage: TypeAlias = Callable[[Model, Site, np.random.Generator, Feeds], list[str]]


def _rows(site: Site) -> int:
    """The axis of a weight's output channels."""
    if site.node.op_type == "MatMul":
        return 1
    turned = any(a.name == "transB" and a.i for a in site.node.attribute)
    return 0 if site.node.op_type == "Conv" or turned else 1


def wrong_scale(model: Model, site: Site, rng: np.random.Generator, _: Feeds) -> list[str]:
    """The weight is 1.4 to 2.5 times as large, or as small."""
    factor = rng.uniform(1.4, 2.5) ** rng.choice([-1, 1])
    place = site.weight if site.scale is None else site.scale
    model.put(place, model.value(place) * factor)
    return [site.name]


def saturated(model: Model, site: Site, rng: np.random.Generator, _: Feeds) -> list[str]:
    """Weights beyond 0.1 to 0.25 of the largest lie at the ends."""
    values, share = model.value(site.weight), rng.uniform(0.1, 0.25)
    if site.scale is None:
        most = share * np.abs(values).max()
        model.put(site.weight, np.clip(values, -most, most))
    else:
        zero = 0 if values.dtype == np.int8 or site.zero is None else model.value(site.zero).astype(np.int32)
        least, most = (-128, 127) if values.dtype == np.int8 else (0, 255)
        if np.size(zero) > 1:
            raise UnfitError
        spread = np.clip((values.astype(np.int32) - zero) / share + zero, least, most)
        model.put(site.weight, np.round(spread))
        model.put(site.scale, model.value(site.scale) * share)
    return [site.name]


def swapped(model: Model, site: Site, rng: np.random.Generator, _: Feeds) -> list[str]:
    """A quarter of the output channels, two at least, stand in each other's place."""
    values = np.moveaxis(model.value(site.weight), _rows(site), 0)
    count = max(2, len(values) // 4)
    picked = rng.choice(len(values), count, replace=False)
    values[picked] = values[np.roll(picked, 1)]
    model.put(site.weight, np.moveaxis(values, 0, _rows(site)))
    if site.scale is not None and (scale := model.value(site.scale)).size == len(values):
        scale[picked] = scale[np.roll(picked, 1)]
        model.put(site.scale, scale)
    return [site.name]


def wrong_clip(model: Model, site: Site, rng: np.random.Generator, feeds: Feeds) -> list[str]:
    """The input ends at 0.1 to 0.3 of its largest value: by a Clip, or by the range of its quantization."""
    share = rng.uniform(0.1, 0.3)
    if site.quantize is not None and site.dequantize is not None:
        name = site.quantize.input[1]
        model.put(name, model.value(name) * share)
        return model.readers(site.dequantize.output[0])
    if site.scale is not None:
        raise UnfitError
    most = float(share * np.abs(_value(model.proto, site.node.input[0], feeds)).max())
    graph = model.proto.graph
    bounds = [numpy_helper.from_array(np.float32(v), n) for v, n in ((-most, "least"), (most, "most"))]
    graph.initializer.extend(bounds)
    clip = helper.make_node("Clip", [site.node.input[0], "least", "most"], ["clipped"], "clip")
    graph.node.insert(list(graph.node).index(site.node), clip)
    site.node.input[0] = "clipped"
    return [site.name]


def wrong_zero_point(model: Model, site: Site, rng: np.random.Generator, _: Feeds) -> list[str]:
    """The weight's or the input's DequantizeLinear has another zero point, 10 to 40 steps off."""
    if site.scale is None:
        raise UnfitError
    of_input = site.dequantize is not None and rng.random() < 0.5
    node = site.dequantize if of_input else model.makers[site.node.input[1]]
    assert node is not None
    if len(node.input) < 3:
        raise UnfitError
    old = model.value(node.input[2])
    info = np.iinfo(old.dtype)
    off = int(rng.integers(10, 41)) * int(rng.choice([-1, 1]))
    new = old.astype(np.int64) + off
    if new.min() < info.min or new.max() > info.max:
        new = old.astype(np.int64) - off
    tensor = numpy_helper.from_array(new.astype(old.dtype), "another_zero_point")
    model.proto.graph.initializer.append(tensor)
    node.input[2] = tensor.name
    return model.readers(node.output[0]) if of_input else [site.name]


def lost_bias(model: Model, site: Site, _: np.random.Generator, __: Feeds) -> list[str]:
    """The bias is zero."""
    if site.bias is None or not model.value(site.bias).any():
        raise UnfitError
    model.put(site.bias, np.zeros_like(model.value(site.bias)))
    return [site.name]


DAMAGES: dict[str, Damage] = {
    f.__name__.replace("_", " "): f for f in (wrong_scale, saturated, swapped, wrong_clip, wrong_zero_point, lost_bias)
}


def _value(proto: ModelProto, name: str, feeds: Feeds) -> Array:
    """What a float tensor is on the samples."""
    if name in feeds:
        return feeds[name]
    model = ModelProto()
    model.CopyFrom(proto)
    model.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return np.asarray(_session(model).run([name], feeds)[0])


def _session(model: ModelProto, to: Path | None = None, level: str = "EXTENDED") -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if to is not None:
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
        options.optimized_model_filepath = str(to)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """Samples one by one."""

    def __init__(self, feeds: Feeds) -> None:
        count = len(next(iter(feeds.values())))
        self.rows = iter([{n: v[i : i + 1] for n, v in feeds.items()} for i in range(count)])

    def get_next(self) -> Feeds | None:
        return next(self.rows, None)


def forms(model: Path, feeds: Feeds, folder: Path) -> dict[str, Path]:
    """The float model and what ONNX Runtime's quantizers make of it."""
    found = {"float": model}
    found["QDQ"] = folder / "QDQ.onnx"
    quantize_static(
        model, found["QDQ"], Reader(feeds), quant_format=QuantFormat.QDQ, activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8, op_types_to_quantize=list(PRODUCTS), per_channel=True,
    )  # fmt: skip
    return found


def renamed(model: ModelProto) -> ModelProto:
    """Every node and inner tensor under another name."""
    kept = {v.name for v in (*model.graph.input, *model.graph.output)}
    names: dict[str, str] = {}

    def new(name: str) -> str:
        return name if not name or name in kept else names.setdefault(name, f"t{len(names)}")

    for number, node in enumerate(model.graph.node):
        node.name = f"n{number}"
        node.input[:] = [new(name) for name in node.input]
        node.output[:] = [new(name) for name in node.output]
    for tensor in model.graph.initializer:
        tensor.name = new(tensor.name)
    del model.graph.value_info[:]
    return model


def rewritten(model: ModelProto, tool: str, python: str | None, folder: Path, rng: np.random.Generator) -> Path:
    """The file that a tool makes of the damaged model.

    Raises:
        UnfitError: the tool refuses the model.
    """
    made, out = folder / "damaged.onnx", folder / "after.onnx"
    out.unlink(missing_ok=True)
    if tool == "ONNX Runtime":
        _session(model, out, str(rng.choice(["BASIC", "EXTENDED"])))
    elif tool in REWRITE:
        onnx.save(model, made)
        done = subprocess.run(
            [str(python), "-c", REWRITE[tool], str(made), str(out)], capture_output=True, text=True, check=False
        )
        if done.returncode or not out.exists():
            raise UnfitError((done.stderr.strip().splitlines() or ["failed"])[-1])
    else:
        onnx.save(renamed(model) if tool == "renamed" else model, out)
    return out


@dataclass(frozen=True)
class Case:
    """What a case did, and what explain said."""

    form: str
    tool: str
    layers: list[str]
    first: str
    own_db: float | None
    why: str

    @property
    def found(self) -> bool:
        return self.first in self.layers


def cases(
    before: Path, feeds: Feeds, kind: str, count: int, python: str | None, folder: Path, made: dict[str, Path]
) -> Iterator[Case]:
    """Draw until `count` cases could be made."""
    tools = [t for t in TOOLS if python or t not in REWRITE]
    protos = {name: onnx.load(path) for name, path in made.items()}
    done, seed = 0, 0
    while done < count and seed < 10 * count:
        rng = np.random.default_rng([seed, *kind.encode()])
        seed += 1
        form, tool = str(rng.choice(list(protos))), tools[done % len(tools)]
        model = Model(protos[form])
        sites = [s for s in model.sites() if s.name]
        try:
            site = sites[int(rng.integers(len(sites)))]
            layers = DAMAGES[kind](model, site, rng, feeds)
            after = rewritten(model.proto, tool, python, folder, rng)
        except UnfitError:
            continue
        done += 1
        found = explain(before, after, feeds, times=False, samples=SAMPLES)
        first = found.layers[0]
        yield Case(form, tool, layers, first.node, first.own_sqnr_db, first.why)


def small_minilm(assets: Path, folder: Path) -> tuple[Path, Feeds]:
    """The first two blocks of the sentence encoder, on the words of its samples."""
    data = np.load(assets / "data" / "packages-train.npz")
    ids, mask = data["input_ids"][512 : 512 + SAMPLES], data["attention_mask"][512 : 512 + SAMPLES]
    known, inverse = np.unique(ids, return_inverse=True)
    whole, cut = assets / "models" / "minilm-l6.onnx", folder / "minilm.onnx"
    ends = [n.output[0] for n in onnx.load(whole).graph.node if n.op_type == "LayerNormalization"]
    onnx.utils.extract_model(str(whole), str(cut), ["input_ids", "attention_mask"], [ends[4]], check_model=False)
    model = Model(onnx.load(cut))
    words = "m.embeddings.word_embeddings.weight"
    model.put(words, model.value(words)[known])
    onnx.save(model.proto, cut)
    return cut, {"input_ids": inverse.reshape(ids.shape).astype(np.int64), "attention_mask": mask}


def material(name: str, folder: Path) -> tuple[Path, Feeds]:
    """A model and samples of it."""
    if name in ("resnet20", "minilm"):
        assets = common.need_assets()
        if name == "minilm":
            return small_minilm(assets, folder)
        import meter

        return assets / "models" / "resnet20-cifar10.onnx", {"input": meter.cifar("test")[0][:SAMPLES]}
    if name == "digits":
        images = np.load(common.ROOT / "models" / "digits-train.npz")["images"][:SAMPLES, None]
        return common.ROOT / "models" / "digits-cnn.onnx", {"image": images.astype(np.float32) / 255}
    path = common.ROOT / "models" / "architectures" / f"{ {'mobilenet': 'mobilenet-v3'}.get(name, name) }.onnx"
    rng, feeds = np.random.default_rng(0), {}
    for port in _session(onnx.load(path)).get_inputs():
        shape = [d if isinstance(d, int) else (SAMPLES, 16)[k > 0] for k, d in enumerate(port.shape)]
        drawn = rng.standard_normal(shape) if "float" in port.type else np.ones(shape)
        feeds[port.name] = drawn.astype(np.float32 if "float" in port.type else np.int64)
        if "ids" in port.name:
            feeds[port.name] = rng.integers(0, 64, shape)
    return path, feeds


def main() -> int:
    """Run, keep the rows, and say by the exit code whether 19 of 20 were found of every kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["resnet20", "minilm"])
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--tools", metavar="PYTHON", help="with onnxsim and onnxslim")
    parser.add_argument("--kinds", nargs="*", default=list(DAMAGES))
    asked = parser.parse_args()
    rows = []
    for name in asked.names:
        with tempfile.TemporaryDirectory() as work:
            folder = Path(work)
            model, feeds = material(name, folder)
            made = forms(model, feeds, folder)
            for kind in asked.kinds:
                tried = list(cases(model, feeds, kind, asked.cases, asked.tools, folder, made))
                for case in tried:
                    if not case.found:
                        print(f"  missed: {case}", file=sys.stderr, flush=True)
                found = sum(case.found for case in tried)
                rows.append({"row": f"{name}, {kind}", "cases": len(tried), "first": found})
                print(rows[-1], flush=True)
                common.keep("explain_damage", rows[-1:], "row")
    return 0 if all(row["first"] >= 0.95 * row["cases"] for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
