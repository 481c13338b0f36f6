"""What of a model that cannot be run and compared is compressed? What stands in front of what hinders it."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx

from onnxcomp.errors import ModelError
from onnxcomp.files import scratch
from onnxcomp.graph.io import load, save
from onnxcomp.graph.ir import Graph, Variable
from onnxcomp.graph.parting import Parting, part
from onnxcomp.job import Job
from onnxcomp.runtime.known import is_unknown

MOST_NAMED = 3


def needs_runs(job: Job) -> bool:
    """Whether a job runs its model; without data, verification and benchmark passes only rewrite it."""
    return job.verify or job.bench or job.data is not None


def front_of(graph: Graph) -> Parting | None:
    """The model cut in front of what ONNX Runtime does not know, and of what makes sequences and maps of its answers,
    which cannot be compared number by number; None where there is neither.

    Raises:
        ModelError: no weights stand in front of it, so that nothing is left to compress.
    """
    packing = _packing(graph)
    parting = part(graph, lambda domain, op: (domain, op) in packing or is_unknown(domain, op))
    if parting is None:
        return None
    if not any(len(constant.shape) > 1 for constant in parting.front.constants()):
        raise ModelError(
            f"{_hindrance(parting)}, and no weights stand in front of it",
            where=f"node {parting.foreign[0].name}",
            do="compress what stands behind it as a model of its own (onnx.utils.extract_model) and put it back, or "
            "leave data out: --no-verify --no-bench and passes that need none only rewrite",
        )
    return parting


def _packing(graph: Graph) -> set[tuple[str, str]]:
    """The operators that make outputs of the model which are no tensors, and never make any."""
    made = [t.producer for t in graph.outputs if isinstance(t, Variable) and t.dtype is None and t.producer is not None]
    keys = {(node.domain or "", node.op) for node in made}
    return {(domain, op) for domain, op in keys if _gives_no_tensor(domain, op, graph.opset_of(domain))}


@functools.cache
def _gives_no_tensor(domain: str, op: str, version: int) -> bool:
    try:
        schema = onnx.defs.get_schema(op, version, domain)
    except onnx.defs.SchemaError:
        return False
    return not any(kind.startswith("tensor(") for formal in schema.outputs for kind in formal.types)


def _hindrance(parting: Parting) -> str:
    first = parting.foreign[0]
    unknown = any(is_unknown(n.domain or "", n.op) for n in (first, *(n for body in first.bodies for n in body.walk())))
    return f"{operator(parting)} is no operator of ONNX Runtime" if unknown else f"{operator(parting)} gives no tensor"


def told(parting: Parting) -> list[str]:
    """What a report says of a model that was cut, in two sentences."""
    names = [node.name for node in parting.foreign]
    some = ", ".join(names[:MOST_NAMED]) + (f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else "")
    count = len(names) + parting.behind
    rest = f"{count} nodes from there on stand" if count > 1 else "it stands"
    judged = ", ".join(parting.ends) or "the outputs that do not need it"
    return [
        f"{_hindrance(parting)}: what stands in front of {some} is compressed, judged and timed at {judged}",
        f"{rest} in the written model as before, which was not run as a whole",
    ]


def operator(parting: Parting) -> str:
    """The first operator that hinders, with its domain."""
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
