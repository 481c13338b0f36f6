#!/usr/bin/env bash
# MNN 3.6.1 with onnx 1.23.2: the first conversion of a model makes onnx unusable in the environment that it runs in.
#
# Both install side by side. The module of mnnconvert (and of mnnquant), when it is imported and finds no aliyun.log, runs
# "pip install -U aliyun-log-python-sdk", a logging client for usage reports, by the first pip on PATH: the environment's where it is
# activated, else another one's, such as the system's. MNN's metadata do not name it, no option turns it off. Its 0.9.52 asks
# for protobuf below 6, so pip takes protobuf 7 out and 5.29.6 in; onnx 1.23.2 was generated for 6.31.1 or later, and "import
# onnx" raises VersionError from then on. The conversion itself ends well, so that it is the next script of the pipeline that fails.
# This script puts a pip first on PATH that writes down what it is asked and installs nothing (so that no usage report is sent
# either), asks the real one what it would do, and installs that protobuf. Converting in an environment of its own, with
# nothing else in it and no other pip on PATH, helps. Exits non-zero where that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check MNN==3.6.1 onnx==1.23.2 numpy==2.4.6 protobuf==7.36.2
mkdir "$folder/first"
printf '#!/bin/sh\necho "$@" >> "%s/asked"\nexit 1\n' "$folder" > "$folder/first/pip"
chmod +x "$folder/first/pip"
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import importlib.metadata
import os
import pathlib
import re
import subprocess
import sys

folder = pathlib.Path(sys.argv[1])
PYTHON, BESIDE = sys.executable, pathlib.Path(sys.executable).parent
MAKES = """
import onnx
from onnx import TensorProto, helper
x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in "xy")
graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
onnx.checker.check_model(model, full_check=True)
onnx.save(model, "model.onnx")
"""


def expect(what, holds):
    print(("as stated: " if holds else "CHANGED: ") + what)
    if not holds:
        sys.exit(1)


def runs(*command, path=os.environ["PATH"]):
    return subprocess.run(command, cwd=folder, env=os.environ | {"PATH": path}, text=True, capture_output=True, check=False)


needs = importlib.metadata.requires("MNN") or []
expect(f"MNN's metadata do not name it: {needs}", not any("aliyun" in name for name in needs))
expect("onnx makes a model beside MNN", runs(PYTHON, "-c", MAKES).returncode == 0)
words = ["-f", "ONNX", "--modelFile", "model.onnx", "--MNNModel", "model.mnn", "--bizCode", "x"]
done = runs(PYTHON, str(BESIDE / "mnnconvert"), *words, path=f"{folder}/first:{os.environ['PATH']}")
expect("the conversion ends well", done.returncode == 0 and (folder / "model.mnn").stat().st_size > 0)
asked = (folder / "asked").read_text().split("\n")[0]
expect(f"it asked pip to {asked}", asked == "install -U aliyun-log-python-sdk")
would = runs(PYTHON, "-m", "pip", "install", "--dry-run", "aliyun-log-python-sdk==0.9.52").stdout
version = re.search(r"Would install.* protobuf-(\S+)", would).group(1)
expect(f"pip would install protobuf {version}", int(version.split(".")[0]) < 6)
runs(PYTHON, "-m", "pip", "install", "--quiet", "--no-deps", f"protobuf=={version}")
last = runs(PYTHON, "-c", "import onnx").stderr.strip().split("\n")[-1]
expect(f"import onnx: {last}", "VersionError" in last and "onnx" in last)
PYTHON
