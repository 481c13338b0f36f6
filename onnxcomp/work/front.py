"""What of a model that ONNX Runtime cannot run is compressed? What stands in front of operators it does not know."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from onnxcomp.errors import ModelError
from onnxcomp.files import scratch
from onnxcomp.graph.io import load, save
from onnxcomp.graph.ir import Graph
from onnxcomp.graph.parting import Parting, part
from onnxcomp.job import Job
from onnxcomp.runtime.known import is_unknown

MOST_NAMED = 3


def needs_runs(job: Job) -> bool:
    """Whether a job runs its model; without data, verification and benchmark passes only rewrite it."""
    return job.verify or job.bench or job.data is not None


def front_of(graph: Graph) -> Parting | None:
    """The model cut in front of what ONNX Runtime does not know; None where it knows all.

    Raises:
        ModelError: no weights stand in front of it, so that nothing is left to compress.
    """
    parting = part(graph, is_unknown)
    if parting is None:
        return None
    if not any(len(constant.shape) > 1 for constant in parting.front.constants()):
        raise ModelError(
            f"{operator(parting)} is no operator of ONNX Runtime, and no weights stand in front of it",
            where=f"node {parting.foreign[0].name}",
            do="compress what stands behind it as a model of its own (onnx.utils.extract_model) and put it back, or "
            "leave data out: --no-verify --no-bench and passes that need none only rewrite",
        )
    return parting


def told(parting: Parting) -> list[str]:
    """What a report says of a model that was cut, in two sentences."""
    names = [node.name for node in parting.foreign]
    some = ", ".join(names[:MOST_NAMED]) + (f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else "")
    count = len(names) + parting.behind
    rest = f"{count} nodes from there on stand" if count > 1 else "it stands"
    judged = ", ".join(parting.ends) or "the outputs that do not need it"
    return [
        f"{operator(parting)} is no operator of ONNX Runtime: what stands in front of {some} is compressed, judged and "
        f"timed at {judged}",
        f"{rest} in the written model as before, which nothing here can run as a whole",
    ]


def operator(parting: Parting) -> str:
    """The first operator that ONNX Runtime does not know, with its domain."""
    first = parting.foreign[0]
    inner = next((n for body in first.bodies for n in body.walk() if is_unknown(n.domain or "", n.op)), first)
    return f"{inner.domain}:{inner.op}" if inner.domain else inner.op


@contextmanager
def runnable_files(*models: Path) -> Iterator[list[Path]]:
    """Model files, or in the place of each that ONNX Runtime cannot run a file of the part that it can.

    Raises:
        ModelError: as `front_of`, or a file cannot be used.
    """
    with scratch() as folder:
        found = []
        for number, model in enumerate(models):
            parting = front_of(load(model))
            found.append(model)
            if parting is not None:
                found[-1] = folder / str(number) / model.name
                found[-1].parent.mkdir()
                save(parting.front, found[-1])
        yield found
