"""Is a pass from an installed third-party package a pass like any other?

The package in plugin_package/ is installed by pip into a folder of its own, which a fresh interpreter gets on its path.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import builders
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

HERE = Path(__file__).resolve().parent


def install(package: Path, target: Path) -> Path:
    """pip-install a package folder without network; the build happens in a copy, so the tree stays clean."""
    copy = target.parent / "source"
    shutil.copytree(package, copy, ignore=shutil.ignore_patterns("__pycache__", "build", "*.egg-info"))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
    command += ["--no-build-isolation", "--no-deps", "--target", str(target), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return target


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(HERE / "plugin_package", tmp_path_factory.mktemp("plugin") / "site")


def fake_distribution(folder: Path, name: str, entry: str, group: str = "onnxcomp.passes") -> Path:
    """The metadata of an installed package, as far as one entry point needs it."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{entry}\n")
    return folder


def python(code: str, *site: Path, arguments: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(str(folder) for folder in site)}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True, check=False
    )


def test_plugin_is_unknown_before_it_is_installed() -> None:
    done = python("from onnxcomp.manager import registry; registry.find('round-weights')")
    assert "there is no pass 'round-weights'" in done.stderr


def test_plugin_is_found_by_name_and_runs_in_a_pipeline(plugin: Path, tmp_path: Path) -> None:
    source = builders.save(builders.mlp(), tmp_path / "mlp.onnx")
    code = """
import json, sys
import onnxcomp
from onnxcomp.manager import registry
source, target = sys.argv[1:]
pipeline = onnxcomp.Pipeline.parse("round-weights{bits=4}")
result = onnxcomp.PassManager(pipeline).run(onnxcomp.load(source))
onnxcomp.save(result.graph, target)
record = result.records[0]
cls = registry.find("round-weights")
print(json.dumps([registry.names()[-1], cls.__module__, str(pipeline), record.changes, record.summary]))
"""
    done = python(code, plugin, arguments=(str(source), str(tmp_path / "out.onnx")))
    assert done.returncode == 0, done.stderr
    name, module, spec, changes, summary = json.loads(done.stdout)
    assert (name, module, spec) == ("round-weights", "onnxcomp_round_weights", "round-weights{bits=4}")
    assert (changes, summary) == (2, "2 weights rounded to 4 bits")
    weights = {t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / "out.onnx").graph.initializer}
    original = {t.name: numpy_helper.to_array(t) for t in onnx.load(source).graph.initializer}
    mantissa, _ = np.frexp(weights["fc1.weight"])
    np.testing.assert_array_equal(mantissa * 16, np.round(mantissa * 16))
    np.testing.assert_allclose(weights["fc1.weight"], original["fc1.weight"], rtol=2**-4)
    np.testing.assert_array_equal(weights["fc1.bias"], original["fc1.bias"])


def test_options_of_a_plugin_are_checked_like_those_of_a_built_in_pass(plugin: Path) -> None:
    done = python("import onnxcomp; onnxcomp.Pipeline.parse('round-weights{bits=99}')", plugin)
    assert "round-weights: bits=99 must be at most 24" in done.stderr


def test_plugin_keeps_the_contract_of_a_pass(plugin: Path) -> None:
    code = "import onnxcomp.testing as t, onnxcomp_round_weights as mine; t.check_pass(mine.RoundWeights)"
    done = python(code, plugin)
    assert done.returncode == 0, done.stderr


def test_command_line_lists_the_plugin_and_its_options(plugin: Path) -> None:
    code = "from onnxcomp.cli.main import main; import sys; main(sys.argv[1:])"
    assert "round-weights" in python(code, plugin, arguments=("passes",)).stdout
    shown = python(code, plugin, arguments=("passes", "round-weights")).stdout
    assert "significant bits to keep" in shown


@pytest.mark.parametrize("taken", ["cleanup", "round-weights"])
def test_a_name_clash_is_an_error_that_names_the_package(taken: str, plugin: Path, tmp_path: Path) -> None:
    other = fake_distribution(tmp_path, "other-passes", f"{taken} = other_passes:Mine")
    done = python("from onnxcomp.manager import registry; registry.names()", plugin, other)
    assert done.returncode == 1
    assert f"two passes are called {taken!r}" in done.stderr


def test_an_entry_point_that_is_no_pass_is_refused(tmp_path: Path) -> None:
    site = fake_distribution(tmp_path, "odd-passes", "odd = json:JSONDecoder")
    done = python("from onnxcomp.manager import registry; registry.find('odd')", site)
    assert "the installed pass 'odd' is not a Pass of that name" in done.stderr


def test_operators_of_a_plugin_are_known_to_every_pass(plugin: Path, tmp_path: Path) -> None:
    site = fake_distribution(tmp_path, "my-operators", "dense = my_operators:FACTS", "onnxcomp.operators")
    (site / "my_operators.py").write_text(
        "from onnxcomp.ops.facts import OpFacts, Weight\n"
        "FACTS = OpFacts('Dense', 'my.domain', weights=lambda node: (Weight(port=1, out_axis=1, in_axes=(0,)),))\n"
    )
    source = builders.save(builders.custom_operator(), tmp_path / "custom.onnx")
    code = """
import sys
import onnxcomp
manager = onnxcomp.PassManager(onnxcomp.Pipeline.parse("round-weights{bits=2}"))
print(manager.run(onnxcomp.load(sys.argv[1])).records[0].changes)
"""
    assert python(code, plugin, arguments=(str(source),)).stdout.strip() == "0"
    done = python(code, plugin, site, arguments=(str(source),))
    assert done.stdout.strip() == "1", done.stderr
