"""Does the code of docs/deploy.md compile and run in C++, compile in Java, and what does int8 take there?

    python benchmarks/in_native.py [ASSETS] [--rounds 7]

Needs g++, javac, node and npm. Headers and the Java classes come out of the Android archive in the npm package
com.github.asus4.onnxruntime (about 150 MB), the library for Linux out of onnxruntime-node; both are installed into a
temporary folder. The blocks of the page are compiled as they stand, inside a few lines that feed them; the C++ program
is linked to the library and answers for each form of the model, in turns in one process, on one thread. The classes of
the archive call a library for Android, so Java is compiled and not run. ASSETS holds models/ and data/ with resnet20;
without it the times are those of the model that ships here.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from in_node import FORMS, ROOT, made, python, sample, sqnr_db

PACKAGES = {"onnxruntime-node": "1.30.0", "com.github.asus4.onnxruntime": "0.4.9"}
ARCHIVE = "com.github.asus4.onnxruntime/Plugins/Android/onnxruntime.aar"
LIBRARY = "onnxruntime-node/bin/napi-v6/linux/x64"
PAGE_CPP = """
#include <onnxruntime_cxx_api.h>
#include <array>
#include <cstdio>
#include <vector>
int main() {
std::vector<float> pixels(64, 0.5f);
%s
for (int i = 0; i < 10; i++) std::printf("%%.9g\\n", result[0].GetTensorData<float>()[i]);
}
"""
TIMES_CPP = """
#include <onnxruntime_cxx_api.h>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <vector>
// rounds, name of the input, its sizes joined by x, the file of its values, and models
int main(int count, char **words) {
  int rounds = std::atoi(words[1]);
  const char *inputs[] = {words[2]};
  std::vector<int64_t> shape;
  size_t values = 1;
  for (char *p = words[3]; *p; p += *p == 'x') { shape.push_back(std::strtoll(p, &p, 10)); values *= shape.back(); }
  std::vector<float> pixels(values);
  std::ifstream(words[4], std::ios::binary).read(reinterpret_cast<char *>(pixels.data()), values * sizeof(float));
  Ort::Env env;
  Ort::SessionOptions options;
  options.SetIntraOpNumThreads(1);
  auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  auto input = Ort::Value::CreateTensor<float>(memory, pixels.data(), values, shape.data(), shape.size());
  std::vector<Ort::Session> sessions;
  std::vector<std::string> outputs;
  Ort::AllocatorWithDefaultOptions allocator;
  for (int i = 5; i < count; i++) {
    sessions.emplace_back(env, words[i], options);
    outputs.push_back(sessions.back().GetOutputNameAllocated(0, allocator).get());
  }
  auto answer = [&](size_t i) {
    const char *output = outputs[i].c_str();
    return sessions[i].Run(Ort::RunOptions{}, inputs, &input, 1, &output, 1);
  };
  for (size_t i = 0; i < sessions.size(); i++) {
    auto result = answer(i);
    std::printf("answer");
    for (size_t n = 0; n < result[0].GetTensorTypeAndShapeInfo().GetElementCount(); n++)
      std::printf(" %.9g", result[0].GetTensorData<float>()[n]);
    std::printf("\\n");
  }
  for (int round = 0; round < rounds; round++) {
    std::printf("times");
    for (size_t i = 0; i < sessions.size(); i++) {
      clock_t start = std::clock();
      for (int call = 0; call < 20; call++) answer(i);
      std::printf(" %.9g", double(std::clock() - start) / CLOCKS_PER_SEC / 20);
    }
    std::printf("\\n");
  }
}
"""
PAGE_JAVA = """
import ai.onnxruntime.*;
import java.util.Map;
class Page {
  static float[][] run(float[][][][] pixels) throws OrtException {
%s
  }
}
"""


def main() -> None:
    """Install, make, compile, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("assets", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        install(work)
        own = ROOT / "models" / "digits-cnn.onnx", ROOT / "models" / "digits-train.npz"
        made(*own, FORMS["int8, `quantize-qdq`"], [], work / "digits-cnn.opt.onnx")
        print(f"the page in C++: {page_in_cpp(work):.0f} dB to Python's answer")
        page_in_java(work)
        print("the page in Java: compiled\n")
        model, data, flags = *own, []
        if asked.assets is not None:
            model, data = asked.assets / "models" / "resnet20-cifar10.onnx", asked.assets / "data" / "cifar10-train.npz"
            flags = ["--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225"]
        files = [made(model, data, spec, flags, work / f"{index}.onnx") for index, spec in enumerate(FORMS.values())]
        answers, times = in_turns(work, files, asked.rounds)
        version = PACKAGES["onnxruntime-node"]
        print(f"{model.stem}, C++ with the library of onnxruntime-node {version}, 1 thread\n")
        print("| form | ms, processor time | share of float's | SQNR to Python's |\n|---|---|---|---|")
        for form, spent, answer, file in zip(FORMS, times, answers, files, strict=True):
            share, db = np.median(np.divide(spent, times[0])), sqnr_db(python(file, work), answer)
            print(f"| {form} | {1000 * np.median(spent):.3f} | {share:.2f} | {db:.0f} dB |")


def install(work: Path) -> None:
    """Both packages, the headers and classes of the archive, and the library under the name that a linker asks for."""
    names = [f"{name}@{version}" for name, version in PACKAGES.items()]
    subprocess.run(["npm", "install", "--silent", "--ignore-scripts", "--prefix", str(work), *names], check=True)
    with zipfile.ZipFile(work / "node_modules" / ARCHIVE) as archive:
        archive.extractall(work, [n for n in archive.namelist() if n.startswith("headers/") or n == "classes.jar"])


def block(language: str) -> str:
    """The one block of the page in that language."""
    (found,) = re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / "deploy.md").read_text(), re.S)
    return str(found)


def compiled(work: Path, name: str, source: str) -> Path:
    """A program of C++17, linked to the library."""
    library = work / "node_modules" / LIBRARY / "libonnxruntime.so.1"
    (work / f"{name}.cpp").write_text(source)
    command = ["g++", "-std=c++17", "-O2", "-Wall", "-Werror", "-I", str(work / "headers"), f"{work / name}.cpp"]
    subprocess.run([*command, str(library), f"-Wl,-rpath,{library.parent}", "-o", str(work / name)], check=True)
    return work / name


def page_in_cpp(work: Path) -> float:
    """What the page's block answers, in dB to what Python answers."""
    import onnxruntime

    program = compiled(work, "page", PAGE_CPP % block("cpp"))
    told = subprocess.run([program], cwd=work, capture_output=True, text=True, check=True).stdout.split()
    session = onnxruntime.InferenceSession(work / "digits-cnn.opt.onnx", providers=["CPUExecutionProvider"])
    expected = np.asarray(session.run(None, {"image": np.full((1, 1, 8, 8), 0.5, np.float32)})[0]).reshape(-1)
    return sqnr_db(expected, np.array(told, np.float32))


def page_in_java(work: Path) -> None:
    """Compile the page's block against the classes of the archive."""
    body = block("java").replace(".getValue();", ".getValue();\n    return logits;")
    (work / "Page.java").write_text(PAGE_JAVA % body)
    subprocess.run(["javac", "-cp", str(work / "classes.jar"), "-d", str(work), str(work / "Page.java")], check=True)


def in_turns(work: Path, files: list[Path], rounds: int) -> tuple[list[np.ndarray], list[list[float]]]:
    """Answers, and processor seconds a call in each round, of every file."""
    name, values = sample(files[0])
    values.tofile(work / "input.bin")
    program = compiled(work, "times", TIMES_CPP)
    words = [str(rounds), name, "x".join(map(str, values.shape)), "input.bin", *map(str, files)]
    environment = os.environ | {"ORT_DISABLE_TELEMETRY": "1"}
    done = subprocess.run([program, *words], cwd=work, capture_output=True, text=True, check=True, env=environment)
    rows = [line.split() for line in done.stdout.splitlines()]
    answers = [np.array(row[1:], np.float32) for row in rows if row[0] == "answer"]
    times = [[float(value) for value in row[1:]] for row in rows if row[0] == "times"]
    return answers, [list(column) for column in zip(*times, strict=True)]


if __name__ == "__main__":
    main()
