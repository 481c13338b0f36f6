"""What each stage found out, as plain data; `Report.to_json` is the contract that scripts read."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from onnxcomp.drawn import ChangedPart, WeightHistogram
from onnxcomp.ordered import Certainty, Drift

# a latency change below this share is nothing anyone would notice, and two copies of one model differ by as much
NEGLIGIBLE = 0.01

PAGE_MARK = '<meta name="generator" content="onnxcomp">'  # stands in every page that onnxcomp writes

ABSENT, REMOVED = "absent", "removed"  # what a layer's precision is where it is not there: before, after

Verdict = Literal["accepted", "over-budget", "unchanged"]


@dataclass(frozen=True)
class Change:
    """One thing a pass changed."""

    node: str
    what: str


@dataclass(frozen=True)
class Skip:
    """One thing a pass left alone, and why."""

    node: str
    why: str


@dataclass(frozen=True)
class ModelStats:
    """Size and cost of one model. `bytes` counts the .onnx file and its external data."""

    bytes: int
    parameters: int
    nonzero_parameters: int
    macs: int
    nodes: int
    opset: int


@dataclass(frozen=True)
class TrainingRecord:
    """How one training went.

    Attributes:
        spec: of the pass.
        loss: what was minimised, in words.
        teacher: whose answers were learned; empty without one.
        samples, views: training samples, and how many augmented views of each were made.
        held_out_samples: whose loss chose the best step; never trained on.
        steps, batch: steps done, and samples a step.
        losses, rates: (step, mean) over pieces of equal length: training loss and learning rate.
        held_out: (step, loss), the first before any step.
        best_step: whose parameters were kept.
        ended: `done`, `early` or `interrupted`.
        seconds: of the whole training, the teacher included; `step_seconds` the median of a step.
        peak_memory_bytes: of the process that trained.
        gradient_error: median relative error of the gradient self-check; None where it did not run.
    """

    spec: str
    loss: str
    teacher: str
    samples: int
    views: int
    held_out_samples: int
    steps: int
    batch: int
    parameters: int
    losses: tuple[tuple[float, float], ...]
    rates: tuple[tuple[float, float], ...]
    held_out: tuple[tuple[float, float], ...]
    best_step: int
    ended: str
    seconds: float
    step_seconds: float
    peak_memory_bytes: int
    gradient_error: float | None = None

    @property
    def words(self) -> str:
        """One line for people."""
        ends = dict(self.held_out)
        kept = ends.get(self.best_step, next(reversed(ends.values()), 0.0))
        brought = f"held-out loss {self.held_out[0][1]:.4g} -> {kept:.4g}" if ends else f"loss {self.losses[-1][1]:.4g}"
        best = "" if self.best_step == self.steps or not ends else f", best at {self.best_step}"
        early = {"early": ", ended early", "interrupted": ", interrupted"}.get(self.ended, "")
        return f"{brought} in {self.steps} steps of {self.batch}{best}{early}, {self.seconds:.0f} s; {self.loss}"


IDLE = "nothing to do"


@dataclass(frozen=True)
class PassRecord:
    """What one pass did, as the manager saw it. `missed`: what was asked of it and not reached, in words."""

    name: str
    spec: str
    guarantee: str
    seconds: float
    changes: int
    skips: tuple[Skip, ...] = ()
    summary: str = ""
    details: tuple[Change, ...] = ()
    metrics: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    bytes_before: int = 0
    bytes_after: int = 0
    operators_before: dict[str, int] = field(default_factory=dict)
    operators_after: dict[str, int] = field(default_factory=dict)
    rolled_back: str = ""
    missed: str = ""
    documents: dict[str, Any] = field(default_factory=dict)

    @property
    def idle(self) -> bool:
        """Whether it found nothing to do, and has nothing to say of it."""
        return not (self.changes or self.rolled_back or self.notes) and self.summary in ("", IDLE)


@dataclass(frozen=True)
class LayerRecord:
    """One weighted layer before and after. `own_sqnr_db`: the layer's own error on the original's inputs, in dB.

    `precision`: what it computes in by ONNX Runtime's profile, where nothing was run what it is stored in; `absent` is
    before it was made, `removed` after it went. `stored`: what its weight is stored in, where that is not what it
    computes in.
    """

    node: str
    op: str
    precision: tuple[str, str]
    bytes: tuple[int, int]
    parameters: tuple[int, int]
    own_sqnr_db: float | None = None
    weights: WeightHistogram | None = None
    stored: tuple[str, str] | None = None

    @property
    def held(self) -> tuple[str, str]:
        """What its weight is stored in, before and after."""
        return self.stored or self.precision


@dataclass(frozen=True)
class Accuracy:
    """A task metric before and after. `drop` is positive when the result is worse, whichever way the metric points.

    `interval`: where the drop lies with 95 % confidence, had other samples of the same kind judged; None for a metric
    that is no mean over samples.
    """

    metric: str
    samples: int
    before: float
    after: float
    drop: float
    interval: tuple[float, float] | None = None

    @property
    def change(self) -> float:
        """After minus before, which is what people are shown: less than 0 where a metric that is better higher fell."""
        return self.after - self.before

    def changes(self, drops: tuple[float, float]) -> tuple[float, float]:
        """An interval of the drop as one of the change."""
        low, high = drops
        return (low, high) if self.drop * self.change > 0 else (-high, -low)  # of no drop the middle is 0


@dataclass(frozen=True)
class PartFidelity:
    """How close one part of an output stayed: slices of one quantity, such as the scores beside boxes in pixels.

    Attributes:
        name: where its elements lie, `axis 1: 4-11`, or which they are.
        elements: their number, over all samples.
        rms: root mean square of the original's.
        sqnr_db: of the part alone.
        judged_by: what the error is held against: the energy, what varies about a mean that would hide it, or a floor.
    """

    name: str
    elements: int
    rms: float
    sqnr_db: float
    max_abs_error: float
    judged_by: str = "energy"


@dataclass(frozen=True)
class OutputFidelity:
    """How close one output stayed to the original's. SQNR is null when the outputs are equal.

    It is null, too, for outputs that are no floating-point numbers: `equal_share` tells how many elements agree.
    `finite_share` tells how many of the original's elements are neither NaN nor infinite.

    Where an output holds quantities of unlike scale, `parts` has each, `worst_part` names the worst, and `sqnr_db`, the
    number that counts, is that part's; `total_sqnr_db` is over all elements. `comparable` is false where the number of
    rows depends on the values and differs, so that no element has a counterpart.
    """

    identical: bool
    sqnr_db: float | None
    max_abs_error: float
    top1_agreement: float | None = None
    equal_share: float | None = None
    finite_share: float = 1.0
    total_sqnr_db: float | None = None
    parts: tuple[PartFidelity, ...] = ()
    worst_part: str | None = None
    comparable: bool = True

    @property
    def decibels(self) -> float | None:
        """What limits look at: the SQNR; for values that are no floating-point numbers, their share of unequal ones.

        That counts as if it were the noise: one in a hundred is 20 dB. None where all is equal or nothing can be told.
        """
        if self.sqnr_db is not None or self.identical or self.equal_share is None or not self.comparable:
            return self.sqnr_db
        unequal = 1.0 - self.equal_share
        return -10 * math.log10(unequal) if unequal > 0 else None


@dataclass(frozen=True)
class Agreement:
    """How often the new model decides as the original does, on one output or on several that say one thing together.

    Attributes:
        kind: classes, decisions, tokens, pixels, ctc, boxes, embeddings, regression or state.
        outputs: which outputs it is about.
        measure: what was counted, in words.
        value: 0 to 1; None where nothing can be told.
        samples: how many it is of.
        details: further figures by name.
        doubts: why it is weak evidence, each in words.
        flips: of classes, the first samples that both models put into other ones: (sample, class before, class after).
        decisions: how many decisions of the original it is a share of: samples, boxes, places, rows; None where it is
            no such share.
        evidence: as many decisions that know nothing of each other would be as sure; None where that is not known.
        also: the same figure where a user may draw the line elsewhere: in words, and its value.
    """

    kind: str
    outputs: tuple[str, ...]
    measure: str
    value: float | None
    samples: int
    details: dict[str, float] = field(default_factory=dict)
    doubts: tuple[str, ...] = ()
    flips: tuple[tuple[int, int, int], ...] = ()
    decisions: int | None = None
    evidence: int | None = None
    also: tuple[tuple[str, float], ...] = ()

    @property
    def seen(self) -> int:
        """How much it tells: `evidence`, or else the samples it is of, or decisions where those are fewer."""
        if self.evidence is not None:
            return self.evidence
        return self.samples if self.decisions is None else min(self.samples, self.decisions)


@dataclass(frozen=True)
class Fidelity:
    """Closeness of all outputs on `samples` samples that calibration did not see.

    `agreements`: how often both models decide the same, by the task that each output was taken for; `guesses` says what
    that was, a line each.
    `drift`: of a stateful model, whose samples are steps.
    `certainty`: where samples judged only until the limits were decided.
    """

    samples: int
    source: Literal["data", "synthetic"]
    outputs: dict[str, OutputFidelity]
    agreements: tuple[Agreement, ...] = ()
    guesses: tuple[str, ...] = ()
    drift: Drift | None = None
    certainty: Certainty | None = None

    @property
    def worst_sqnr_db(self) -> float | None:
        """The lowest SQNR over the outputs in dB; None when all are identical."""
        values = [o.sqnr_db for o in self.outputs.values() if o.sqnr_db is not None]
        return min(values) if values else None

    @property
    def worst_db(self) -> float | None:
        """The least of all outputs' decibels, those that are no floating-point numbers too."""
        values = [o.decibels for o in self.outputs.values()]
        return min((value for value in values if value is not None), default=None)

    @property
    def agreement(self) -> float | None:
        """The lowest agreement; states do not count, they decide nothing. None where nothing can be told."""
        values = [a.value for a in self.agreements if a.value is not None and a.kind != "state"]
        return min(values) if values else None

    @property
    def least_agreeing(self) -> Agreement | None:
        """Where the agreement is lowest."""
        known = [a for a in self.agreements if a.value is not None and a.kind != "state"]
        return min(known, key=lambda a: a.value or 0.0, default=None)

    @property
    def untold(self) -> tuple[str, ...]:
        """Outputs of which neither elements nor decisions can be compared."""
        told = {name for a in self.agreements if a.value is not None for name in a.outputs}
        return tuple(name for name, o in self.outputs.items() if not o.comparable and name not in told)

    @property
    def identical(self) -> bool:
        """Whether every output is bit-equal."""
        return all(o.identical for o in self.outputs.values())

    @property
    def least_agreement(self) -> float | None:
        """The lowest share of equal first classes over the outputs; None where none ranks classes."""
        values = [o.top1_agreement for o in self.outputs.values() if o.top1_agreement is not None]
        return min(values) if values else None


@dataclass(frozen=True)
class LatencySpread:
    """How single calls are spread: counts in bins of equal width from `low_ms` to `high_ms`, slower calls apart."""

    low_ms: float
    high_ms: float
    before: tuple[int, ...]
    after: tuple[int, ...]
    slower: tuple[int, int]


@dataclass(frozen=True)
class Footprint:
    """What one model takes to load and in memory, in a process of its own.

    Attributes:
        load_seconds: opening it for the first time; on TensorRT engines are built meanwhile.
        reload_seconds: opening it again in the same process, with whatever caches hold by then; a median.
        first_run_seconds: the first run, which may build engines and pick kernels, too.
        peak_memory_bytes: the largest resident size while it was loaded and ran, beyond the process without it. Memory
            of a GPU is no part of it.
        process_memory_bytes: the largest resident size of that process as a whole.
    """

    load_seconds: float
    reload_seconds: float
    first_run_seconds: float
    peak_memory_bytes: int
    process_memory_bytes: int


@dataclass(frozen=True)
class Benchmark:
    """Latency of a pair, measured interleaved in one process. Times in milliseconds; `speedup` is before/after.

    Attributes:
        nodes_on_provider, nodes_elsewhere: of the model after.
        session_seconds: how long opening a session took, before and after; no part of the latency.
        placement: for the models before and after, how many nodes each provider runs.
        options: what was asked of the provider for the models before and after, beyond its defaults.
        footprints: load time and memory before and after, where they were measured.
        calls: how many calls were timed, before and after.
        compared: what `speedup` is a ratio of: the thread's processor time, or the time on the wall; the milliseconds
            are always the wall's.
        shapes: of the inputs that were timed, by name.
    """

    provider: str
    nodes_on_provider: int
    nodes_elsewhere: int
    batch: int
    threads: int
    before_ms: dict[str, float]
    after_ms: dict[str, float]
    speedup: float
    speedup_interval: tuple[float, float]
    session_seconds: tuple[float, float] | None = None
    spread: LatencySpread | None = None
    placement: tuple[dict[str, int], dict[str, int]] | None = None
    options: tuple[dict[str, Any], dict[str, Any]] | None = None
    footprints: tuple[Footprint, Footprint] | None = None
    calls: tuple[int, int] | None = None
    compared: str = "wall"
    shapes: dict[str, list[int]] = field(default_factory=dict)

    @property
    def outcome(self) -> Literal["faster", "slower", "no change"]:
        """A change is claimed when the 95 % interval lies wholly outside 1 +- `NEGLIGIBLE`."""
        low, high = self.speedup_interval
        return "faster" if low > 1.0 + NEGLIGIBLE else "slower" if high < 1.0 - NEGLIGIBLE else "no change"


@dataclass(frozen=True)
class BudgetLine:
    """One budget and how the result stands to it; the value is None when it could not be measured.

    `share`: what the limit was given as, where that was a share of the original.
    """

    name: str
    limit: float
    value: float | None
    passed: bool
    share: float | None = None


@dataclass(frozen=True)
class FileRef:
    """A file and the SHA-256 of its bytes (of the .onnx file and then its external data)."""

    path: str
    sha256: str


@dataclass(frozen=True)
class Calibration:
    """How many samples calibration saw and where they came from; `repeated`: of how many that judge it saw copies."""

    samples: int
    source: str
    repeated: int = 0


@dataclass(frozen=True)
class TeacherRecord:
    """Another model that taught: its file, and how the result stands to it. `accuracy.before` is the teacher's.

    `fidelity` is the result's, `fidelity_before` that of the model as it was; None where that was the teacher itself.
    """

    path: str
    sha256: str
    accuracy: Accuracy | None = None
    fidelity: Fidelity | None = None
    fidelity_before: Fidelity | None = None

    @property
    def farther(self) -> bool:
        """Whether the result is farther from the teacher than the model as it was, by all that was measured."""
        if self.fidelity is None or self.fidelity_before is None:
            return False
        pairs = [
            (self.fidelity_before.worst_sqnr_db, self.fidelity.worst_sqnr_db),
            (self.fidelity_before.least_agreement, self.fidelity.least_agreement),
        ]
        known = [(before, after) for before, after in pairs if before is not None and after is not None]
        return any(a < b for b, a in known) and not any(a > b for b, a in known)


@dataclass(frozen=True)
class Flip:
    """A sample that both models put into other classes.

    Attributes:
        sample: its number among those that judged.
        name: of its file, or its place in the data.
        before, after: the class that each model gives.
        label: the right one, where labels were given.
    """

    sample: int
    name: str
    before: int
    after: int
    label: int | None = None


@dataclass
class Report:
    """Everything one run measured; filled by the driver stage by stage.

    Attributes:
        warnings: reasons to doubt all of it, said first.
        request: what repeats the run: the command, every option that was given, and the shapes that were timed.
        doubts: why the verdict is weak evidence, each in words that stand in the first line.
        changed_parts: what became of the graph, layer by layer; of many the layers with the largest error.
        more_parts: how many more changed.
        flips: samples that both models put into other classes, the first of them.
    """

    tool: dict[str, str]
    machine: dict[str, Any]
    seed: int
    source: FileRef
    before: ModelStats
    after: ModelStats
    exit_code: int = 0
    verdict: Verdict = "accepted"
    reason: str = ""
    output: FileRef | None = None
    calibration: Calibration | None = None
    seconds: float = 0.0
    peak_memory_bytes: int = 0
    passes: list[PassRecord] = field(default_factory=list)
    training: list[TrainingRecord] = field(default_factory=list)
    teacher: TeacherRecord | None = None
    layers: list[LayerRecord] = field(default_factory=list)
    accuracy: Accuracy | None = None
    fidelity: Fidelity | None = None
    benchmarks: list[Benchmark] = field(default_factory=list)
    budget: list[BudgetLine] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    guesses: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    request: dict[str, Any] = field(default_factory=dict)
    doubts: list[str] = field(default_factory=list)
    changed_parts: list[ChangedPart] = field(default_factory=list)
    more_parts: int = 0
    flips: list[Flip] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The report as JSON-ready data, schema 1; NaN and infinities become null."""
        content: dict[str, Any] = finite({"schema": 1, **asdict(self)})
        return content


@dataclass(frozen=True)
class Failure:
    """An error that ended the build of one model."""

    what: str
    where: str
    do: str


@dataclass
class BuiltModel:
    """What the build step did with one model.

    `why`: what made it build, e.g. "model.onnx changed". `report_path` is relative to the configuration's folder.
    """

    name: str
    status: Literal["built", "up to date", "failed"]
    exit_code: int
    output: str
    report_path: str
    why: list[str] = field(default_factory=list)
    report: Report | None = None
    error: Failure | None = None
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)


@dataclass
class BuildReport:
    """What one run of the build step did. `exit_code`: the lowest of those that are not 0."""

    config: str
    models: list[BuiltModel]
    seconds: float = 0.0

    @property
    def exit_code(self) -> int:
        """0 when every model stands, else the lowest failing code."""
        return min((model.exit_code for model in self.models if model.exit_code), default=0)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready, schema 1; the models' own reports are named, not repeated."""
        models = []
        for model in self.models:
            content = {f.name: getattr(model, f.name) for f in fields(model) if f.name not in ("report", "error")}
            verdict = model.report.verdict if model.report is not None else None
            reason = model.report.reason if model.report is not None else ""
            error = asdict(model.error) if model.error is not None else None
            models.append({**content, "verdict": verdict, "reason": reason, "error": error})
        head = {"schema": 1, "config": self.config, "exit_code": self.exit_code, "seconds": self.seconds}
        found: dict[str, Any] = finite({**head, "models": models})
        return found


def finite(value: Any) -> Any:
    """JSON-ready data with null for NaN and infinities, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return value
