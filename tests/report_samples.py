"""Reports for tests of what they are turned into: as large and as hostile as asked for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnxcomp.drawn import ChangedPart, DrawnGraph, DrawnNode, WeightHistogram
from onnxcomp.results import (
    Accuracy,
    Benchmark,
    BudgetLine,
    BuildReport,
    BuiltModel,
    Calibration,
    Failure,
    Fidelity,
    FileRef,
    Flip,
    LatencySpread,
    LayerRecord,
    ModelStats,
    OutputFidelity,
    PassRecord,
    Report,
    Skip,
    TeacherRecord,
    TrainingRecord,
)

HOSTILE = [
    "</title><script>document.title='owned'</script>",
    '"><img src=x onerror="document.title=\'owned\'">',
    "' onmouseover='document.title=1' x='",
    "\x00\x08\x1b[31m\x7f\x85\u202egnp.exe\ufeff",
    "</style><style>*{display:none}</style>",
    "&lt;b&gt; &amp; &#60;",
    "javascript:alert(1)",
    "--> <!-- ]]> <![CDATA[",
    "| `x` | [a](javascript:b) **c** ~~d~~\n# head",
    "é中\U0001f600" * 40,
    "\ud800 half a pair",
]
PRECISIONS = ["int8", "int4", "float32", "float16", "int2", "removed", "float8e4m3fn", "unheard of"]


def large_name(index: int) -> str:
    return f"/backbone/layer{index // 50}/block{index}/conv{index}/Conv"


def hostile_name(index: int) -> str:
    return f"{HOSTILE[index % len(HOSTILE)]}{index}"


def layer(index: int, name: Callable[[int], str], rng: np.random.Generator) -> LayerRecord:
    precision = PRECISIONS[index % len(PRECISIONS)]
    size = int(10 ** rng.uniform(2, 6))
    shares = tuple(round(float(x), 5) for x in rng.dirichlet(np.ones(32)))
    kept = None if index % 5 == 0 else ((-0.8, 0.7), shares, 0.25)
    weights = WeightHistogram(
        low=-1.0,
        high=1.0,
        before=shares,
        after=kept[1] if kept else None,
        range=((-1.0, 1.0), kept[0] if kept else None),
        zeros=(0.0, kept[2] if kept else None),
    )
    return LayerRecord(
        node=name(index),
        op="Conv",
        precision=("float32", precision),
        bytes=(size, 0 if precision == "removed" else size // 4),
        parameters=(size // 4, size // 4),
        own_sqnr_db=None if index % 7 == 0 else float(rng.uniform(-5, 80)),
        weights=None if index % 11 == 0 else weights,
    )


def part(index: int, name: Callable[[int], str]) -> ChangedPart:
    """A layer that was folded together and quantized; of some nothing is left."""
    before = DrawnGraph(
        (
            DrawnNode(name(index), "Conv", "float32 [8, 4, 3, 3]", "changed"),
            DrawnNode(name(index + 1), "BatchNormalization", name(index + 2), "gone"),
            DrawnNode(f"from {name(index + 3)}", "", "", "outside"),
            DrawnNode("to y", "", "", "outside"),
        ),
        ((2, 0), (0, 1), (1, 3)),
    )
    after = DrawnGraph(
        (
            DrawnNode(name(index + 4), "DequantizeLinear", "int8 [8, 4, 3, 3]", "new"),
            DrawnNode(name(index), "Conv", "", "changed"),
            DrawnNode(f"from {name(index + 3)}", "", "", "outside"),
            DrawnNode("to y", "", "", "outside"),
        ),
        ((0, 1), (2, 1), (1, 3)),
        3,
    )
    return ChangedPart(name(index), before, after if index % 4 else DrawnGraph((), ()))


def report(layers: int = 20, name: Callable[[int], str] = large_name) -> Report:
    """A report that holds everything a report can hold."""
    rng = np.random.default_rng(0)
    records = [layer(index, name, rng) for index in range(layers)]
    sizes = [sum(r.bytes[i] for r in records) + 5000 for i in (0, 1)]
    counts = tuple(range(60))
    passes = [
        PassRecord(
            name(i),
            name(i + 1),
            "lossy",
            1.0,
            3,
            tuple(Skip(name(j), name(j % 3)) for j in range(layers)),
            name(i + 2),
            notes=(name(i + 3),),
            metrics={name(i): 0.5},
        )
        for i in range(3)
    ]
    far, near = (Fidelity(100, "data", {name(0): OutputFidelity(False, db, 0.1, db / 30)}) for db in (12.0, 20.0))
    return Report(
        tool={"name": "onnxcomp", "version": "1.2.3", name(0): name(1)},
        machine={"cpu": name(2), "isa": ["avx2", name(3)]},
        seed=0,
        source=FileRef(f"models/{name(1)}.onnx", "ab" * 32),
        before=ModelStats(sizes[0], 10**6, 10**6, 10**9, layers, 17),
        after=ModelStats(sizes[1], 10**6, 9 * 10**5, 10**9, 2 * layers, 17),
        exit_code=10,
        verdict="over-budget",
        reason=f"missed: max_drop {name(2)}",
        output=FileRef(f"dist/{name(3)}", "cd" * 32),
        calibration=Calibration(512, name(4)),
        passes=passes,
        training=[
            TrainingRecord(
                spec=name(6),
                loss=name(7),
                teacher="original",
                samples=1000,
                views=2,
                held_out_samples=100,
                steps=300,
                batch=64,
                parameters=10**6,
                losses=tuple((float(10 * i), 2.0 / i) for i in range(1, 31)),
                rates=tuple((float(10 * i), 1e-3) for i in range(1, 31)),
                held_out=((0.0, 2.5), (150.0, 0.4), (300.0, 0.3)),
                best_step=300,
                ended="done",
                seconds=9.0,
                step_seconds=0.03,
                peak_memory_bytes=10**8,
                gradient_error=0.001,
            )
        ],
        teacher=TeacherRecord(name(8), "ef" * 32, Accuracy(name(5), 1000, 0.95, 0.8, 0.15), near, far),
        layers=records,
        accuracy=Accuracy(name(5), 1000, 0.9, 0.8, 0.1),
        fidelity=Fidelity(
            100, "data", {name(0): OutputFidelity(False, 20.0, 0.1, 0.99), name(2): OutputFidelity(True, None, 0.0)}
        ),
        benchmarks=[
            Benchmark(
                provider="CPUExecutionProvider",
                nodes_on_provider=3,
                nodes_elsewhere=0,
                batch=1,
                threads=1,
                before_ms={"p50": 2.0, "p90": 3.0},
                after_ms={"p50": 1.0, "p90": 1.5},
                speedup=2.0,
                speedup_interval=(1.9, 2.1),
                session_seconds=(0.1, 0.2),
                spread=LatencySpread(0.9, 4.0, counts, counts[::-1], (3, 4)),
            )
        ],
        budget=[BudgetLine("max_drop", 0.01, 0.1, False), BudgetLine("max_size", 1e6, None, False)],
        guesses=[name(i) for i in range(3)],
        notes=[name(i) for i in range(3)],
        changed_parts=[part(index, name) for index in range(min(layers, 100))],
        more_parts=max(0, layers - 100),
        flips=[Flip(i, name(i), i, i + 1, (None, i, i + 1, 77)[i % 4]) for i in range(min(layers, 24))],
    )


def build(name: Callable[[int], str] = large_name) -> BuildReport:
    """A build with one model of each outcome."""
    refused = BuiltModel(
        name(0), "failed", 10, f"{name(1)}.onnx", "a.json", [name(2)], report(8, name), None, 1.5, [name(3)]
    )
    broken = BuiltModel(
        name(4), "failed", 3, "b.onnx", "b.json", error=Failure(name(5), name(6), name(7)), notes=[name(8)]
    )
    kept = report(8, name)
    kept.verdict, kept.exit_code, kept.reason, kept.budget = "accepted", 0, "", []
    return BuildReport(name(0), [refused, broken, BuiltModel("good", "up to date", 0, "c.onnx", "c.json", report=kept)])
