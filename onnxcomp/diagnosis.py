"""What can this machine run? Found by running it: processor, packages, providers, int8 arithmetic, training."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from onnxcomp._version import __version__
from onnxcomp.distill import environment
from onnxcomp.runtime import providers, tensorrt
from onnxcomp.runtime.arithmetic import int8_arithmetic
from onnxcomp.runtime.machine import Machine, conflict, machine


@dataclass(frozen=True)
class Ability:
    """Something that this machine has or lacks.

    Attributes:
        reason: why it is not usable; empty where it is.
        remedy: how to have it.
    """

    name: str
    usable: bool
    reason: str = ""
    remedy: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """What one machine can run.

    Attributes:
        conflict: builds of ONNX Runtime that overwrite each other, with the cure; empty where there are none.
        int8: `exact` or `saturating`, what sums of u8*s8 products are.
        providers: those that ONNX Runtime has or could have, CPU first.
        tensorrt_parser: TensorRT's own word on a model, without a GPU.
        training: the environment that trains, where one stands.
    """

    machine: Machine
    conflict: str
    int8: str
    providers: tuple[Ability, ...]
    tensorrt_parser: Ability
    training: environment.Environment | None

    def to_json(self) -> dict[str, Any]:
        """JSON-ready data."""
        return {
            "schema": 1,
            "tool": {"name": "onnxcomp", "version": __version__, **self.machine.versions},
            "python": self.machine.python,
            "system": self.machine.system,
            "machine": self.machine.to_json(),
            "conflict": self.conflict or None,
            "int8": self.int8,
            "providers": [asdict(one) for one in self.providers],
            "tensorrt_parser": asdict(self.tensorrt_parser),
            "training": None if self.training is None else asdict(self.training),
        }


def diagnose() -> Diagnosis:
    """Look at the machine; each provider that is called usable has just run a small model."""
    parser = tensorrt.installed()
    return Diagnosis(
        machine(),
        conflict(),
        int8_arithmetic(),
        tuple(_providers()),
        Ability("tensorrt parser", parser, "" if parser else "not installed", "" if parser else tensorrt.REMEDY),
        environment.find(environment.CUDA) or environment.find(environment.CPU),
    )


def _providers() -> list[Ability]:
    # the Azure provider sends inputs to a web service: nothing that this machine runs
    listed = [p for p in providers.built_in() if p not in (providers.CPU, "AzureExecutionProvider")]
    found = [Ability(providers.short_name(providers.CPU), True)]
    for provider in dict.fromkeys([*listed, providers.CUDA, providers.TENSORRT]):
        probe = providers.usability(provider)
        reasons = ("", "") if probe.usable else (probe.reason, probe.remedy)
        found.append(Ability(providers.short_name(provider), probe.usable, *reasons))
    return found
