"""Options of GPU providers: what is asked for becomes what ONNX Runtime understands, or an error; no GPU needed."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import builders
import onnx
import pytest
from onnx import TensorProto, helper

from onnxcomp import benchmark
from onnxcomp.cli.main import main
from onnxcomp.errors import EnvironmentLacksError, UsageError
from onnxcomp.results import Footprint
from onnxcomp.runtime import latency, providers, session
from onnxcomp.runtime.acceleration import PLAIN, Acceleration, chain, is_quantized, reference
from onnxcomp.runtime.providers import CPU, CUDA, TENSORRT


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    return stopped.value.code if isinstance(stopped.value.code, int) else 1


def quantized() -> onnx.ModelProto:
    """x -> Q -> DQ -> y inside the body of an If, so that only a walk finds it."""
    f, i8 = TensorProto.FLOAT, TensorProto.INT8
    consts = [helper.make_tensor("s", f, [], [0.1]), helper.make_tensor("z", i8, [], [0])]
    inner = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
    ]
    body = helper.make_graph(inner, "then", [], [helper.make_tensor_value_info("d", f, [4])])
    other = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["e"])], "else", [], [helper.make_tensor_value_info("e", f, [4])]
    )
    node = helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=other)
    inputs = [helper.make_tensor_value_info("x", f, [4]), helper.make_tensor_value_info("c", TensorProto.BOOL, [])]
    graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info("y", f, [4])], consts)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


# -- what ONNX Runtime is told --


def test_nothing_asked_for_is_nothing_said():
    assert chain(CPU, PLAIN, quantized=False) == [(CPU, {})]
    assert chain(CUDA, PLAIN, quantized=False) == [(CUDA, {})]
    assert chain(TENSORRT, PLAIN, quantized=False) == [(TENSORRT, {}), (CUDA, {})]


def test_a_model_with_q_and_dq_needs_int8_on_tensorrt_only():
    assert chain(TENSORRT, PLAIN, quantized=True)[0][1] == {"trt_int8_enable": "1"}
    assert chain(CUDA, PLAIN, quantized=True) == [(CUDA, {})]


def test_everything_that_can_be_asked_of_tensorrt(tmp_path: Path):
    asked = Acceleration(
        fp16=True,
        sparsity=True,
        cuda_graph=True,
        builder_level=5,
        engine_cache=tmp_path,
        profile=("x:0=1x3x8x8:4x3x8x8:8x3x8x8", "y=1:2:3"),
        provider_option=("device_id=1", "trt_fp16_enable=0"),
    )
    (name, options), rest = chain(TENSORRT, asked, quantized=True)
    assert name == TENSORRT
    assert rest == (CUDA, {"device_id": "1"})  # nodes that TensorRT leaves stay on the same GPU
    assert options == {
        "trt_fp16_enable": "0",  # a further option has the last word
        "trt_int8_enable": "1",
        "trt_sparsity_enable": "1",
        "trt_cuda_graph_enable": "1",
        "trt_builder_optimization_level": "5",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(tmp_path),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(tmp_path),
        "trt_profile_min_shapes": "x:0:1x3x8x8,y:1",
        "trt_profile_opt_shapes": "x:0:4x3x8x8,y:2",
        "trt_profile_max_shapes": "x:0:8x3x8x8,y:3",
        "device_id": "1",
    }


def test_cuda_options():
    asked = Acceleration(cuda_graph=True, exact_float32=True)
    assert chain(CUDA, asked, quantized=False) == [(CUDA, {"enable_cuda_graph": "1", "use_tf32": "0"})]
    assert reference(CUDA) == Acceleration(exact_float32=True)
    assert reference(TENSORRT) == reference(CPU) == PLAIN


@pytest.mark.parametrize(
    ("provider", "asked", "flag"),
    [
        (CUDA, {"fp16": True}, "--fp16"),
        (CUDA, {"sparsity": True}, "--sparsity"),
        (TENSORRT, {"exact_float32": True}, "--exact-float32"),
        (CPU, {"cuda_graph": True}, "--cuda-graph"),
        (CPU, {"provider_option": ("a=1",)}, "--provider-option"),
    ],
)
def test_an_option_that_a_provider_does_not_have_is_an_error(provider: str, asked: dict[str, Any], flag: str):
    with pytest.raises(UsageError, match=flag) as caught:
        chain(provider, Acceleration(**asked), quantized=False)
    assert "--provider" in caught.value.do
    assert Acceleration(**asked).meant_for(provider) == PLAIN


@pytest.mark.parametrize(
    "wrong",
    [
        {"builder_level": 6},
        {"profile": ("x=1x3",)},
        {"profile": ("x=1x3:2x3:4",)},
        {"profile": ("x=2x3:1x3:4x3",)},
        {"profile": ("1x3:1x3:1x3",)},
        {"provider_option": ("device_id",)},
        {"provider_option": ("device_id=gpu",)},
    ],
)
def test_values_that_make_no_sense_are_refused(wrong: dict[str, Any]):
    with pytest.raises(UsageError):
        Acceleration(**wrong)


def test_it_survives_json(tmp_path: Path):
    asked = Acceleration(fp16=True, engine_cache=tmp_path, profile=("x=1:1:2",))
    assert Acceleration(**json.loads(json.dumps(asked.to_json()))) == asked
    assert PLAIN.to_json() == {}


def test_q_and_dq_are_found_in_bodies():
    assert is_quantized(quantized().SerializeToString())
    assert not is_quantized(builders.mlp().SerializeToString())


# -- what happens in a session on a machine with such a provider: ONNX Runtime's part is played by a stand-in --


class Runtime:
    """Plays `onnxruntime.InferenceSession` for a provider that this machine lacks; keeps what it was told."""

    made: list[Runtime]
    placed: tuple[tuple[str, tuple[str, ...]], ...]

    def __init__(self, model: object, options: Any, providers: list[tuple[str, dict[str, str]]], **other: object):
        self.chain, self.options, self.other = providers, options, other
        Runtime.made.append(self)

    def get_providers(self) -> list[str]:
        return [*(name for name, _ in self.chain), CPU]

    def get_inputs(self) -> list[Any]:
        return [SimpleNamespace(name="x", shape=[4], type="tensor(float)")]

    get_outputs = get_inputs

    def get_provider_graph_assignment_info(self) -> list[Any]:
        def part(name: str, ops: tuple[str, ...]) -> Any:
            return SimpleNamespace(ep_name=name, get_nodes=lambda: [SimpleNamespace(op_type=op) for op in ops])

        return [part(*placed) for placed in self.placed]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[Runtime]:
    Runtime.made = []
    Runtime.placed = ((TENSORRT, ("Conv", "Relu")), (CUDA, ("Resize",)), (CPU, ("NonZero",)), (TENSORRT, ("Conv",)))
    monkeypatch.setattr("onnxruntime.InferenceSession", Runtime)
    monkeypatch.setattr(providers, "usability", lambda name: providers.Usability(name, True))
    return Runtime.made


def test_a_session_asks_for_the_provider_alone_and_says_where_nodes_run(gpu: list[Runtime]):
    opened = session.open_session(quantized().SerializeToString(), provider="tensorrt", acceleration=Acceleration())
    (told,) = gpu
    assert told.other["enable_fallback"] == 0
    assert told.chain == [(TENSORRT, {"trt_int8_enable": "1"}), (CUDA, {})]
    assert told.options.get_session_config_entry(providers.RECORD_ASSIGNMENT) == "1"
    placed = opened.placement()
    assert (placed.on_provider, placed.nodes_elsewhere) == (3, 2)
    assert placed.counts == {TENSORRT: 3, CUDA: 1, CPU: 1}
    assert placed.elsewhere == Counter(Resize=1, NonZero=1)


def test_a_run_outside_of_fixed_memory_is_never_recorded_as_a_cuda_graph(gpu: list[Runtime]):
    Runtime.placed = ((CUDA, ("Relu",)),)
    opened = session.open_session(b"", provider="cuda", acceleration=Acceleration(cuda_graph=True))
    assert opened._options().get_run_config_entry("gpu_graph_id") == "-1"
    assert session.open_session(b"", provider="cuda")._options() is None
    assert [told.chain[0][1] for told in gpu] == [{"enable_cuda_graph": "1"}, {}]


def test_a_provider_that_takes_no_node_gets_no_session(gpu: list[Runtime]):
    Runtime.placed = ((CUDA, ("Conv",)),)
    with pytest.raises(EnvironmentLacksError, match="takes none of the nodes"):
        session.open_session(builders.mlp().SerializeToString(), provider="tensorrt")


# -- the table on such a machine: what competes with what --


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[latency.Entry], int]]:
    """Every call of the measurement, which gives made-up figures."""
    calls: list[tuple[str, list[latency.Entry], int]] = []

    def bench_many(entries: list[latency.Entry], feed: Any, *, provider: str, threads: int, **_: object) -> list[Any]:
        calls.append((provider, list(entries), threads))
        times = {"p50": 1.0, "p90": 1.1, "p99": 1.2}
        batch = len(next(iter(feed.values())))
        one = latency.Benchmark(provider, 1, 0, batch, threads, times, times, 1.0, (0.99, 1.01))
        return [one] * (len(entries) - 1)

    monkeypatch.setattr(benchmark, "bench_many", bench_many)
    monkeypatch.setattr(benchmark, "footprint", lambda *_, **__: Footprint(0.5, 0.1, 0.2, 1000, 2000))
    monkeypatch.setattr(benchmark, "require", lambda provider: provider)
    return calls


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A float model and one with Q and DQ; what they compute is of no matter here."""
    before = builders.save(quantized(), tmp_path / "a.onnx")
    proto = onnx.load(before)
    for branch in proto.graph.node[0].attribute:
        for node in branch.g.node:
            node.op_type = "Identity"
            del node.input[1:]
    return builders.save(proto, tmp_path / "float.onnx"), before


def test_int8_on_tensorrt_is_set_against_fp16_and_fp32_stands_beside(
    measured: list[Any], pair: tuple[Path, Path], tmp_path: Path
):
    found = benchmark.bench(pair, providers=["tensorrt"], acceleration=Acceleration(sparsity=True))
    ((provider, entries, _),) = measured
    assert provider == TENSORRT
    assert [(entry.model.name, entry.acceleration.fp16) for entry in entries] == [  # type: ignore[union-attr]
        ("float.onnx", True),
        ("float.onnx", False),
        ("a.onnx", True),
    ]
    assert all(entry.acceleration.sparsity for entry in entries)
    folders = {entry.acceleration.engine_cache for entry in entries}
    assert len(folders) == 1 and not folders.pop().exists()  # engines of a run go with it unless a folder was given
    labels = [variant.label for variant in found.rows[0].variants]
    assert labels == ["float.onnx, fp16", "float.onnx, fp32", "a.onnx, int8 and fp16"]
    content = found.to_json()["benchmarks"]
    assert [entry["labels"] for entry in content] == [labels[:2], [labels[0], labels[2]]]
    assert content[0]["footprints"][0]["load_seconds"] == 0.5


def test_each_provider_of_a_table_takes_the_options_it_has(
    measured: list[Any], pair: tuple[Path, Path], tmp_path: Path
):
    asked = Acceleration(fp16=True, exact_float32=True, engine_cache=tmp_path / "engines")
    benchmark.bench(pair[:1], providers=["cpu", "cuda", "tensorrt"], threads=(1, 2), acceleration=asked)
    assert (tmp_path / "engines").is_dir()
    assert [(name, threads) for name, _, threads in measured] == [(p, t) for p in (CPU, CUDA, TENSORRT) for t in (1, 2)]
    by_provider = {name: entries[0].acceleration for name, entries, _ in measured}
    assert by_provider[CPU] == PLAIN
    assert by_provider[CUDA] == Acceleration(exact_float32=True)
    assert by_provider[TENSORRT] == Acceleration(fp16=True, engine_cache=tmp_path / "engines")


def test_an_option_that_no_chosen_provider_has_is_refused(measured: list[Any], pair: tuple[Path, Path]):
    with pytest.raises(UsageError, match="--sparsity"):
        benchmark.bench(pair, providers=["cpu", "cuda"], acceleration=Acceleration(sparsity=True))
    assert measured == []


def test_batches_and_threads_make_a_table(
    measured: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    path = builders.save(builders.mlp(), Path("m.onnx"))  # a long path would be broken at the screen's edge
    assert call("bench", path, path, path, "--threads", "1,2", "--batch", "1, 8", "--json", "b.json") == 0
    found = json.loads(Path("b.json").read_text())["benchmarks"]
    settings = [(b["batch"], b["threads"], b["shapes"]["x"][0]) for b in found]
    assert settings == [(batch, threads, batch) for batch in (1, 8) for threads in (1, 2) for _ in range(2)]
    out = capsys.readouterr().out
    assert out.count(path.name) == 2 * 4 * 3  # latency and loading, four settings, three models
    assert "peak memory" in out and "load ms" in out and "threads" in out


@pytest.mark.parametrize("text", ["0", "1,x", "", "1,,2", "-1"])
def test_batches_that_are_no_numbers_are_refused(text: str, tmp_path: Path):
    assert call("bench", builders.save(builders.mlp(), tmp_path / "m.onnx"), "--batch", text) == 2


def test_a_batch_that_the_model_does_not_take_is_refused(measured: list[Any], tmp_path: Path):
    proto = builders.mlp()
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    path = builders.save(proto, tmp_path / "m.onnx")
    with pytest.raises(UsageError, match="takes 4 samples, and --batch asks for 8"):
        benchmark.bench([path], batches=(1, 8))
    assert measured == []
    assert [row.benchmarks[0].batch for row in benchmark.bench([path]).rows] == [4]
