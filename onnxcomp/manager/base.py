"""What a pass is: a frozen dataclass whose fields are its options, and what it is given and gives back."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Any, ClassVar, Protocol

import numpy as np

from onnxcomp.errors import EnvironmentLacksError, UsageError
from onnxcomp.graph.ir import Array, Constant, Graph, Node
from onnxcomp.layers.hidden import hidden_weight, how_to_plain, why_computed
from onnxcomp.layers.use import WeightUse
from onnxcomp.manager.options import Range, checked, hints_of, option
from onnxcomp.manager.spelling import spelled
from onnxcomp.ops.facts import Operators, load_operators, no_weights
from onnxcomp.results import Change, Skip, TrainingRecord
from onnxcomp.runtime.memory import Memory
from onnxcomp.runtime.progress import SILENT, Progress
from onnxcomp.runtime.reference import Reference
from onnxcomp.runtime.taps import Sessions
from onnxcomp.targets.base import Target

__all__ = [
    "Guarantee",
    "Need",
    "Outcome",
    "Pass",
    "PassContext",
    "Range",
    "SampleSource",
    "Stage",
    "WeightUse",
    "option",
]


class Guarantee(Enum):
    """What a pass promises about the outputs of the model."""

    EXACT = "exact"  # bit-equal
    CLOSE = "close"  # within the pass's stated tolerance
    LOSSY = "lossy"  # judged by the budget


class Need(Enum):
    """What a pass cannot work without."""

    DATA = "calibration data"
    LABELS = "labels"
    TRAINING = "training"


class Stage(IntEnum):
    """Where in a pipeline a pass makes sense: those of an earlier stage first, those of one stage in any order."""

    CLEAN = 0  # the model computes what it did, in fewer nodes
    FLOAT = 1  # weights change, or are fewer, and are floats still
    INTEGER = 2  # weights and activations become integers; what one pass took another leaves alone
    STORED = 3  # what is float still takes fewer bits in the file
    WRITTEN = 4  # the same computation and weights in a smaller file; nothing is found by name afterwards


class SampleSource(Protocol):
    """Samples that can be read again and again, a batch at a time."""

    @property
    def labels(self) -> np.ndarray[Any, Any] | None:
        """Integer labels, one a sample; None where there are none."""

    @property
    def source(self) -> str:
        """Where the samples come from, in words."""

    def __len__(self) -> int: ...

    def batches(self, size: int | None = None) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
        """Feeds by input name, ready for the model."""


class CostModel(Protocol):
    """What things cost on this machine; answers are recorded, so that a run can be repeated elsewhere."""

    def latency_ms(self, graph: Graph) -> float:
        """Median latency of one sample in milliseconds."""

    def node_times_us(self, graph: Graph) -> dict[str, float]:
        """Kernel time in microseconds by name of the node it came from, as far as the runtime kept the names."""


@dataclass
class PassContext:
    """What a pass may use besides the graph.

    Attributes:
        operators: the table of operator facts.
        target: name of the deployment target: cpu, cuda or tensorrt.
        calibration: samples to calibrate on; None where no data was given.
        probes: samples to run on, to see what a rewrite does to the outputs; made up where no data was given.
        training, held_out: samples to train on, those of `calibration` among them, and disjoint ones whose loss ends a
            training early; None where nothing trains.
        original: the model before any pass, which a training may take as teacher; None where only the graph is known.
        sample_shapes: input shapes of one sample, by input name; empty where nothing is known beyond the model.
        memory: what the stages of the run may take.
        seed: for anything drawn at random.
        threads: for ONNX Runtime sessions.
        progress: shows long work.
        costs: what things cost on this machine; None where nothing is to be measured.
        drop: by how much the task's metric falls on samples set aside for choosing; None where there is no metric.
        agreement: how often a graph decides as the original does, on samples that may be looked at; None, or
            gives None, where nothing can be told.
        alone: to be entered around every timing that a pass makes itself; other processes do not time meanwhile.
    """

    operators: Operators = field(default_factory=load_operators)
    target: str = "cpu"
    calibration: SampleSource | None = None
    probes: SampleSource | None = None
    training: SampleSource | None = None
    held_out: SampleSource | None = None
    original: Graph | None = None
    sample_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    memory: Memory = field(default_factory=Memory)
    seed: int = 0
    threads: int = 2
    progress: Progress = SILENT
    costs: CostModel | None = None
    drop: Callable[[Graph], float] | None = None
    agreement: Callable[[Graph], float | None] | None = None
    alone: Callable[[], AbstractContextManager[object]] = nullcontext

    @property
    def sessions(self) -> Sessions:
        """Opens graphs for passes that run them while they work."""
        return Sessions(self.threads)

    def reference(self, graph: Graph, feeds: Iterable[Mapping[str, Array]], *, optimize: bool = True) -> Reference:
        """What a pass that must measure holds its trials against: the graph's answers, kept, on a few samples."""
        return Reference(graph, feeds, self.threads, optimize=optimize)


@dataclass
class Outcome:
    """What a pass changed, what it skipped and why, and figures worth reporting.

    Attributes:
        changes, skips: one entry a node or tensor.
        summary: one line, e.g. "104 of 113 Conv quantized".
        missed: what was asked for and not reached, in words for the first line that a person reads; else empty.
        notes: things the user should know, e.g. that the opset was raised.
        metrics: figures with their unit in the name, e.g. `clipped_share`.
        trainings: how each training of the pass went.
        documents: what is worth a file of its own, JSON-ready, by name: `plan`, `front`.
    """

    changes: list[Change] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)
    summary: str = ""
    missed: str = ""
    notes: list[str] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    trainings: list[TrainingRecord] = field(default_factory=list)
    documents: dict[str, Any] = field(default_factory=dict)

    def change(self, node: Node | Constant | str, what: str) -> None:
        """Record one change."""
        self.changes.append(Change(node if isinstance(node, str) else node.name, what))

    def skip(self, node: Node | Constant | str, why: str) -> None:
        """Record one thing left alone, with the reason."""
        self.skips.append(Skip(node if isinstance(node, str) else node.name, why))


@dataclass(frozen=True)
class Pass(ABC):
    """A rewrite of the graph. Subclass as a frozen dataclass; every field is an option, declared with `option`.

    Class attributes:
        name: as in spec strings.
        guarantee: what it promises; override `promises` where that depends on options.
        tolerance: for CLOSE, the largest error of an output relative to the output's largest magnitude.
        needs: what it cannot work without; override `required` where that depends on options.
        stage: where a search places it; by default in CLEAN, a lossy pass in FLOAT; override `belongs` where that
            depends on options.
        unsearched: why a search leaves it alone, in a clause; empty where it tries the pass.
    """

    name: ClassVar[str]
    guarantee: ClassVar[Guarantee] = Guarantee.LOSSY
    tolerance: ClassVar[float] = 1e-4
    needs: ClassVar[frozenset[Need]] = frozenset()
    stage: ClassVar[Stage | None] = None
    unsearched: ClassVar[str] = ""

    include: tuple[str, ...] = dataclasses.field(
        default=(), kw_only=True, metadata={"doc": "globs of node or weight names to work on; empty means all"}
    )
    exclude: tuple[str, ...] = dataclasses.field(
        default=(), kw_only=True, metadata={"doc": "globs of node or weight names to leave alone"}
    )

    @property
    def traced(self) -> bool:
        """Whether a file written after this pass records where it comes from."""
        return True

    @classmethod
    def suits(cls, target: Target) -> bool:
        """Whether the result is of use on a deployment target, so that a search tries it there."""
        del target
        return True

    def __post_init__(self) -> None:
        hints = hints_of(type(self))
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if value is not item.default:
                object.__setattr__(self, item.name, checked(type(self), self.name, item, hints[item.name], value))
        self.validate()

    def validate(self) -> None:  # noqa: B027 (a hook that most passes do not need)
        """Check options against each other; raise UsageError. The default accepts everything."""

    def promises(self) -> Guarantee:
        """The guarantee under these options."""
        return self.guarantee

    def required(self) -> frozenset[Need]:
        """What these options need."""
        return self.needs

    def belongs(self) -> Stage:
        """The stage under these options."""
        if self.stage is not None:
            return self.stage
        return Stage.FLOAT if self.guarantee is Guarantee.LOSSY else Stage.CLEAN

    def provide(self, progress: Progress) -> None:
        """Make sure that what `Need.TRAINING` stands for is there; called before any pass runs.

        Raises:
            EnvironmentLacksError: it is not, and cannot be brought.
        """
        del progress
        raise EnvironmentLacksError(
            f"{self.name} needs the training runtime", where=f"pass {self}", do="see onnxcomp doctor"
        )

    @abstractmethod
    def run(self, graph: Graph, context: PassContext) -> Outcome:
        """Rewrite the graph in place and say what was done."""

    def __str__(self) -> str:
        return spelled(self.name, self)

    # -- choosing nodes ----------------------------------------------------------------------------------------

    def selects(self, graph: Graph) -> typing.Callable[[Node], bool]:
        """A test for nodes by `include` and `exclude`; globs match node names and names of their initializers.

        Raises:
            UsageError: a glob matches nothing in the graph.
        """
        if not self.include and not self.exclude:
            return lambda node: True
        names = {n.name for n in graph.walk()} | {c.name for c in graph.constants()}
        for key, globs in (("include", self.include), ("exclude", self.exclude)):
            for glob in globs:
                if not fnmatch.filter(names, glob):
                    raise self._no_match(key, glob, names)

        def matches(node: Node, globs: tuple[str, ...]) -> bool:
            own = (node.name, *(t.name for t in node.inputs if isinstance(t, Constant)))
            return any(fnmatch.fnmatchcase(name, glob) for glob in globs for name in own)

        return lambda node: (not self.include or matches(node, self.include)) and not matches(node, self.exclude)

    def weights(self, graph: Graph, context: PassContext, outcome: Outcome) -> list[WeightUse]:
        """Every selected weight that is an initializer, in graph order, bodies of If, Loop and Scan included.

        Weights that the facts name but that another node computes, and calls of local functions, are recorded as
        skipped. A weight that several nodes share comes once for each; look at `WeightUse.shared`.

        Raises:
            UsageError: a glob matches nothing in the graph.
        """
        wanted = self.selects(graph)
        uses: list[WeightUse] = []
        for node in graph.walk():
            if graph.is_function(node):
                outcome.skip(node, f"calls the local function {node.op}; weights inside functions are left alone")
                continue
            facts = context.operators.facts(node)
            found = facts.weights(node)
            if not found and facts.weights is not no_weights and (maker := hidden_weight(node)) is not None:
                outcome.skip(node, f"its weight {how_to_plain(maker)}")
            for weight in found:
                constant = node.constant(weight.port)
                if constant is not None:
                    if wanted(node):
                        uses.append(WeightUse(node, weight, constant))
                    else:
                        outcome.skip(node, "not selected by include and exclude")
                elif (source := node.input(weight.port)) is not None and source.producer is not None:
                    outcome.skip(node, f"its weight {why_computed(source.producer)}")
        return uses

    def _no_match(self, key: str, glob: str, names: set[str]) -> UsageError:
        close = difflib.get_close_matches(glob.replace("*", ""), sorted(names), 3, 0.3)
        return UsageError(
            f"{self.name}: {key} {glob!r} matches no node and no weight",
            where=f"pass {self.name}",
            do=f"names like it: {', '.join(close)}" if close else "see onnxcomp inspect MODEL for the names",
        )
