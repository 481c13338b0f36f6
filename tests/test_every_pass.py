"""Does every registered pass keep the contract, on every model that is easy to stumble over?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxcomp.errors import EnvironmentLacksError
from onnxcomp.graph import io
from onnxcomp.manager import registry
from onnxcomp.manager.base import Need, Pass
from onnxcomp.manager.spec import parse_passes
from onnxcomp.testing import check_pass, hostile_models

# passes that have no useful default, and further options worth the contract; a pass not named here runs as it is
SPECS: dict[str, list[str]] = {
    "fold-constants": ["fold-constants", "fold-constants{max_bytes=0}"],
    "prune-blocks": ["prune-blocks{count=1}"],
    "prune-channels": [
        "prune-channels{ratio=0.3}",
        "prune-channels{macs=0.6,importance=l1,streams=true}",
        "prune-channels{params=0.7,importance=fpgm,scope=layer}",
    ],
    "prune-weights": ["prune-weights{ratio=0.5}"],
    "distill": ["distill{steps=2,batch=8}", "distill{steps=2,batch=8,bits=4,activation_bits=8}"],
    "quantize-weights": ["quantize-weights{bits=8}", "quantize-weights{bits=4,block=32}"],
    "clip-weights": ["clip-weights{method=mse}", "clip-weights{method=sigma}"],
}
CASES = [spec for name in registry.names() for spec in SPECS.get(name, [name])]


def make(spec: str) -> Pass:
    (item,) = parse_passes(spec)
    return item


@pytest.mark.parametrize("model", hostile_models(), ids=str)
@pytest.mark.parametrize("spec", CASES)
def test_contract(spec: str, model: str) -> None:
    item = make(spec)
    if Need.TRAINING in item.required():
        pytest.skip(f"{item.name} trains: seconds a model; the model that ships has its turn below")
    check_pass(item, hostile_models()[model])


@pytest.mark.parametrize("spec", CASES)
def test_contract_on_the_model_that_ships(spec: str, digits: Path, digits_data: tuple[Path, Path]) -> None:
    graph = io.load(digits)
    with np.load(digits_data[0]) as stored:
        data = {key: stored[key][:32] for key in stored.files}
    labels = data.pop("labels", None)
    try:
        results = check_pass(make(spec), graph, data=data, labels=labels)
    except EnvironmentLacksError as error:
        pytest.skip(error.what)
    assert results["the given model"].graph.outputs[0].name == graph.outputs[0].name


def test_every_spec_names_a_registered_pass() -> None:
    assert set(SPECS) <= set(registry.names())
