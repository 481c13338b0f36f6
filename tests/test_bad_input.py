"""Does bad input get a clear error and lose nothing? One table: what is wrong, the exit code, and the words for it."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import builders
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

import onnxcomp
from onnxcomp.cli import main as main_module
from onnxcomp.cli.main import main
from onnxcomp.errors import OutputError
from onnxcomp.files import atomic_write

MODEL, DATA, LACKS, OUTPUT = 3, 4, 5, 6
FLOAT = TensorProto.FLOAT
Case = Callable[[Path], list[str | Path]]


@pytest.fixture(autouse=True)
def _here(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("here"))  # reports go to the current folder


def cnn(folder: Path) -> Path:
    """image [N, 3, 16, 16] -> logits [N, 10]."""
    return builders.save(builders.residual_cnn(), folder / "model.onnx")


def pictures(count: int = 40) -> np.ndarray:
    return builders.rng(0).integers(0, 256, (count, 16, 16, 3), np.uint8)


def data(folder: Path, **arrays: np.ndarray) -> Path:
    np.savez(folder / "data.npz", **(arrays or {"images": pictures(), "labels": np.arange(40) % 10}))
    return folder / "data.npz"


def folder_of_images(folder: Path, count: int = 12) -> Path:
    images = folder / "images"
    images.mkdir()
    for index, picture in enumerate(pictures(count)):
        Image.fromarray(picture).save(images / f"{index:02}.png")
    return images


# -- models ------------------------------------------------------------------------------------------------------------


def truncated(folder: Path) -> list[str | Path]:
    whole = cnn(folder).read_bytes()
    (folder / "model.onnx").write_bytes(whole[: len(whole) * 2 // 3])
    return [folder / "model.onnx"]


def zeros(folder: Path) -> list[str | Path]:
    (folder / "model.onnx").write_bytes(bytes(4096))
    return [folder / "model.onnx"]


def a_page_called_onnx(folder: Path) -> list[str | Path]:
    """A download that brought a page instead; its 4,096th byte lies within a character."""
    text = "<html>" + "ü" * 4000
    (folder / "model.onnx").write_text(text, encoding="utf-8")
    return [folder / "model.onnx"]


def a_picture_called_onnx(folder: Path) -> list[str | Path]:
    Image.fromarray(pictures(1)[0]).save(folder / "picture.png")
    return [(folder / "picture.png").rename(folder / "model.onnx")]


def a_folder(folder: Path) -> list[str | Path]:
    (folder / "model.onnx").mkdir()
    return [folder / "model.onnx"]


def no_model(folder: Path) -> list[str | Path]:
    return [folder / "absent.onnx"]


def cycle(folder: Path) -> list[str | Path]:
    nodes = [helper.make_node("Add", ["x", "b"], ["a"], "first"), helper.make_node("Relu", ["a"], ["b"], "second")]
    proto = builders.model(nodes, [builders.value("x", FLOAT, [1])], [builders.value("b", FLOAT, [1])], check=False)
    return [builders.save(proto, folder / "model.onnx")]


def newer_opset(folder: Path) -> list[str | Path]:
    proto = builders.mlp()
    proto.opset_import[0].version = 99
    return [builders.save(proto, folder / "model.onnx")]


def missing_external_data(folder: Path) -> list[str | Path]:
    path = builders.save_external(builders.mlp(), folder / "model.onnx")
    (folder / "weights.bin").unlink()
    return [path]


def short_external_data(folder: Path) -> list[str | Path]:
    path = builders.save_external(builders.mlp(), folder / "model.onnx")
    os.truncate(folder / "weights.bin", 100)
    return [path]


def escaping_external_data(folder: Path) -> list[str | Path]:
    """The data file exists, one folder up."""
    inside = folder / "inside"
    inside.mkdir()
    path = builders.save_external(builders.mlp(), inside / "model.onnx")
    (inside / "weights.bin").rename(folder / "weights.bin")
    proto = onnx.load(path, load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../weights.bin"
    return [builders.save(proto, path)]


def linked_external_data(folder: Path) -> list[str | Path]:
    """A symbolic link inside the model's folder leads out of it."""
    inside = folder / "inside"
    inside.mkdir()
    path = builders.save_external(builders.mlp(), inside / "model.onnx")
    (inside / "weights.bin").rename(folder / "weights.bin")
    (inside / "weights.bin").symlink_to(folder / "weights.bin")
    return [path]


def unknown_operator(folder: Path) -> list[str | Path]:
    return [builders.save(builders.custom_operator(), folder / "model.onnx")]


def sequence_output(folder: Path) -> list[str | Path]:
    nodes = [helper.make_node("SequenceConstruct", ["x", "x"], ["y"], "pair")]
    out = helper.make_tensor_sequence_value_info("y", FLOAT, [4])
    return [builders.save(builders.model(nodes, [builders.value("x", FLOAT, [4])], [out]), folder / "model.onnx")]


def shapes_that_clash(folder: Path) -> list[str | Path]:
    weights = {"w": np.ones((5, 4), np.float32)}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "product")]
    ends = [builders.value("x", FLOAT, ["N", 8])], [builders.value("y", FLOAT, ["N", 4])]
    return [builders.save(builders.model(nodes, *ends, weights, check=False), folder / "model.onnx")]


def operator_that_does_not_exist(folder: Path) -> list[str | Path]:
    nodes = [helper.make_node("Convv", ["x"], ["y"], "typo")]
    ends = [builders.value("x", FLOAT, ["N", 8])], [builders.value("y", FLOAT, ["N", 8])]
    return [builders.save(builders.model(nodes, *ends, check=False), folder / "model.onnx")]


def edited_weight(**fields: object) -> Case:
    """The MLP, with fields of its first weight set anew."""

    def case(folder: Path) -> list[str | Path]:
        proto = builders.mlp()
        for name, value in fields.items():
            setattr(proto.graph.initializer[0], name, value)
        return [builders.save(proto, folder / "model.onnx")]

    return case


def data_name_with_a_zero_byte(folder: Path) -> list[str | Path]:
    path = builders.save_external(builders.mlp(), folder / "model.onnx")
    proto = onnx.load(path, load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "weights\0.bin"
    return [builders.save(proto, path)]


def input_of_no_type(folder: Path) -> list[str | Path]:
    proto = builders.mlp()
    proto.graph.input[0].type.tensor_type.elem_type = 99
    return [builders.save(proto, folder / "model.onnx")]


def text_that_is_none(folder: Path) -> list[str | Path]:
    text = onnx.TensorProto(name="words", data_type=onnx.TensorProto.STRING, dims=[1], string_data=[b"\xff"])
    node = helper.make_node("Constant", [], ["text"], "constant", value=text)
    ends = [builders.value("x", FLOAT, [1])], [builders.value("text", onnx.TensorProto.STRING, [1])]
    return [builders.save(builders.model([node], *ends, check=False), folder / "model.onnx")]


def constant_cut_short(folder: Path) -> list[str | Path]:
    value = onnx.TensorProto(name="part", data_type=FLOAT, dims=[4], raw_data=bytes(10))
    nodes = [
        helper.make_node("Constant", [], ["c"], "constant", value=value),
        helper.make_node("Add", ["x", "c"], ["y"]),
    ]
    ends = [builders.value("x", FLOAT, [4])], [builders.value("y", FLOAT, [4])]
    return [builders.save(builders.model(nodes, *ends, check=False), folder / "model.onnx")]


def larger_than_any_memory(folder: Path) -> list[str | Path]:
    """An input of 4 PiB; a processor addresses less."""
    ends = [builders.value("x", FLOAT, ["N", 1 << 50])], [builders.value("y", FLOAT, ["N", 1 << 50])]
    return [builders.save(builders.model([helper.make_node("Relu", ["x"], ["y"])], *ends), folder / "model.onnx")]


MODELS: list[tuple[Case, int, str]] = [
    (truncated, MODEL, "truncated"),
    (zeros, MODEL, "not an ONNX model"),
    (a_picture_called_onnx, MODEL, "not an ONNX model"),
    (a_page_called_onnx, MODEL, "this is a text file"),
    (a_folder, MODEL, "cannot be read"),
    (no_model, MODEL, "does not exist"),
    (cycle, MODEL, "cycle"),
    (newer_opset, MODEL, "opset 99"),
    (missing_external_data, MODEL, "external data is missing"),
    (short_external_data, MODEL, "truncated"),
    (escaping_external_data, MODEL, "outside the model's folder"),
    (linked_external_data, MODEL, "leaves the model's folder"),
    (unknown_operator, MODEL, "is no operator of ONNX Runtime"),
    (sequence_output, MODEL, "y"),
    (shapes_that_clash, MODEL, "refuses the model"),
    (operator_that_does_not_exist, MODEL, "Convv"),
    (edited_weight(data_type=99), MODEL, "element type 99"),
    (edited_weight(data_type=0), MODEL, "element type 0"),
    (input_of_no_type, MODEL, "tensor x"),
    (text_that_is_none, MODEL, "not UTF-8"),
    (constant_cut_short, MODEL, "do not fit its shape"),
    (data_name_with_a_zero_byte, MODEL, "entry is malformed"),
    (larger_than_any_memory, DATA, "one would take"),
]


# -- data --------------------------------------------------------------------------------------------------------------


def with_data(write: Callable[[Path], Path]) -> Case:
    """The CNN, and what `write` makes."""
    return lambda folder: [cnn(folder), "--data", write(folder)]


def no_data(folder: Path) -> Path:
    return folder / "absent.npz"


def empty_folder(folder: Path) -> Path:
    (folder / "images").mkdir()
    return folder / "images"


def only_unreadable_images(folder: Path) -> Path:
    (folder / "images").mkdir()
    for index in range(3):
        (folder / "images" / f"{index}.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    return folder / "images"


def wrong_rank(folder: Path) -> Path:
    return data(folder, image=np.zeros((40, 3, 16), np.float32))


def wrong_size(folder: Path) -> Path:
    return data(folder, image=np.zeros((40, 3, 20, 20), np.float32))


def wrong_type(folder: Path) -> Path:
    return data(folder, image=np.zeros((40, 3, 16, 16), np.complex64))


def text_for_numbers(folder: Path) -> Path:
    return data(folder, image=np.full((40, 3, 16, 16), "a"))


def not_a_number(folder: Path) -> Path:
    values = np.zeros((40, 3, 16, 16), np.float32)
    values[:, 1, 2, 3] = np.nan
    return data(folder, image=values)


def fewer_labels(folder: Path) -> Path:
    return data(folder, images=pictures(), labels=np.zeros(39, np.int64))


def labels_out_of_range(folder: Path) -> Path:
    return data(folder, images=pictures(), labels=np.full(40, 10))


def pickled(folder: Path) -> Path:
    np.savez(folder / "data.npz", images=np.array([{}], object))
    return folder / "data.npz"


def cut_short(folder: Path) -> Path:
    path = data(folder)
    os.truncate(path, path.stat().st_size // 2)
    return path


def declares_a_terabyte(folder: Path) -> Path:
    header = np.lib.format.magic(1, 0)
    text = repr({"descr": "|u1", "fortran_order": False, "shape": (10**12,)}).ljust(117) + "\n"
    (folder / "data.npy").write_bytes(header + len(text).to_bytes(2, "little") + text.encode())
    return folder / "data.npy"


def bomb(folder: Path) -> Path:
    """An archive of 1.6 MB whose one member holds 1.6 GB of zeros."""
    rows = 16 * 2**20 // 10
    text = repr({"descr": "|u1", "fortran_order": False, "shape": (rows * 10 * 10, 4, 4, 1)}).ljust(117) + "\n"
    with (
        zipfile.ZipFile(folder / "data.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("images.npy", "w", force_zip64=True) as member,
    ):
        member.write(np.lib.format.magic(1, 0) + len(text).to_bytes(2, "little") + text.encode())
        for _ in range(100):
            member.write(bytes(rows * 16))
    return folder / "data.npz"


def one_sample(folder: Path) -> Path:
    return data(folder, images=pictures(1))


def function_that_fails(folder: Path) -> Path:
    (folder / "feeds.py").write_text("def feeds():\n    yield {'image': 1 / 0}\n")
    return folder / "feeds.py:feeds"


def unknown_kind(folder: Path) -> Path:
    (folder / "data.parquet").write_bytes(b"PAR1")
    return folder / "data.parquet"


DATA_CASES: list[tuple[Case, int, str]] = [
    (with_data(no_data), DATA, "no file or folder"),
    (with_data(empty_folder), DATA, "holds no images"),
    (with_data(only_unreadable_images), DATA, "3 images are unreadable"),
    (with_data(wrong_rank), DATA, "[40, 3, 16]"),
    (with_data(wrong_size), DATA, "[40, 3, 20, 20]"),
    (with_data(wrong_type), DATA, "complex64"),
    (with_data(text_for_numbers), DATA, "<U1"),
    (with_data(not_a_number), DATA, "NaN"),
    (with_data(fewer_labels), DATA, "39 labels for 40 samples"),
    (with_data(labels_out_of_range), DATA, "10 classes"),
    (with_data(pickled), DATA, "pickled"),
    (with_data(cut_short), DATA, "not a whole NumPy file"),
    (with_data(declares_a_terabyte), DATA, "declares 1,000,000,000,000 bytes"),
    (with_data(bomb), DATA, "archive bomb"),
    (with_data(one_sample), DATA, "1 sample cannot be shared out"),
    (with_data(function_that_fails), DATA, "ZeroDivisionError"),
    (with_data(unknown_kind), DATA, "no kind of data"),
]


# -- outputs -----------------------------------------------------------------------------------------------------------


def output(*more: str, make: Callable[[Path], object] = lambda folder: None) -> Case:
    """The CNN, with these arguments; {} stands for the folder."""

    def case(folder: Path) -> list[str | Path]:
        path = cnn(folder)
        make(folder)
        return [path, "--passes", "cleanup,fuse-batchnorm", *(text.replace("{}", str(folder)) for text in more)]

    return case


def link(folder: Path) -> None:
    (folder / "link.onnx").symlink_to(folder / "model.onnx")


OUTPUTS: list[tuple[Case, int, str]] = [
    (output("-o", "{}/model.onnx"), OUTPUT, "overwrite the input"),
    (output("-o", "{}/link.onnx", make=link), OUTPUT, "the output is a link"),
    (output("--report", "{}/model.onnx"), OUTPUT, "overwrite the input"),
    (output("--html", "{}/model.onnx"), OUTPUT, "overwrite the input"),
    (output("-o", "{}", make=lambda folder: None), OUTPUT, "folder"),
    (output("-o", "{}/a.onnx", "--report", "{}/a.onnx"), OUTPUT, "one name"),
    (output("-o", "/proc/out.onnx"), OUTPUT, "/proc"),
    (output("-o", "{}/" + 300 * "n" + ".onnx"), OUTPUT, "long"),
    (output("-o", "{}/model.onnx/out.onnx"), OUTPUT, "folder cannot be written"),
]


WRONG_WORDS: list[tuple[list[str], str]] = [
    (["optimise"], "there is no command 'optimise'"),
    (["optimize"], "Missing argument 'MODEL'"),
    (["optimize", "m.onnx", "--resize", "zoom"], "'zoom' is not one of"),
    (["optimize", "m.onnx", "--eval-samples", "many"], "'many' is not a valid integer"),
    (["optimize", "m.onnx", "--no-such-flag"], "No such option"),
    (["verify", "a.onnx", "b.onnx", "c.onnx"], "give two models"),
    (["passes", "prune-weight"], "prune-weights"),
]


@pytest.mark.parametrize(
    ("words", "told"), WRONG_WORDS, ids=lambda value: value if isinstance(value, str) else "-".join(value)
)
def test_a_wrong_command_line_is_told_like_any_other_error(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    lines = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2
    assert [line.split(":")[0] for line in lines] == ["error", "where", "do"]
    assert told in " ".join(lines)


def contents(folder: Path) -> dict[str, bytes | str]:
    """Every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): str(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() or path.is_symlink()
    }


def name_of(case: tuple[Case, int, str]) -> str:
    return case[2].replace(" ", "-")


@pytest.mark.parametrize("case", [*MODELS, *DATA_CASES, *OUTPUTS], ids=name_of)
def test_three_lines_an_exit_code_and_nothing_lost(
    case: tuple[Case, int, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make, code, words = case
    arguments = make(tmp_path)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    before = contents(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["optimize", *map(str, arguments), "--no-bench"])
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert stop.value.code == code, printed.err
    assert [line.split(":")[0] for line in lines] == ["error", "where", "do"], printed.err
    assert all(line.split(":", 1)[1].strip() for line in lines), printed.err
    assert words in printed.err
    assert printed.out == ""
    assert contents(tmp_path) == before


# -- the disk, and ends that no one chose ------------------------------------------------------------------------------


def run(folder: Path, *arguments: str | Path, limit: int | None = None) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own; `limit`: bytes after which the disk counts as full."""

    def full_disk() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [sys.executable, "-m", "onnxcomp", *map(str, arguments)]
    environment = os.environ | {"TMPDIR": str(folder.parent)}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, preexec_fn=full_disk, check=False
    )


@pytest.mark.parametrize("limit", [1000, 20_000])
def test_full_disk_leaves_nothing(limit: int, tmp_path: Path) -> None:
    """The model takes 22 kB: neither the scratch file that is measured nor the output can be written."""
    folder = tmp_path / "work"
    folder.mkdir()
    model = cnn(folder)
    before = contents(folder)
    done = run(folder, "optimize", model, "--passes", "fuse-batchnorm", "--no-bench", limit=limit)
    assert done.returncode == OUTPUT, done.stderr
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["error", "where", "do"]
    assert "cannot write" in done.stderr
    assert contents(folder) == before


WRITER = """
import os, signal, sys
from pathlib import Path
from onnxcomp.files import atomic_write
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores it, and so would this
with atomic_write(Path("out.bin")) as file:
    file.write(bytes(1 << 20))
    file.flush()
    os.kill(os.getpid(), getattr(signal, sys.argv[1]))
"""


@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_killed_in_the_middle_of_writing_leaves_nothing_half(how: str, tmp_path: Path) -> None:
    (tmp_path / "out.bin").write_bytes(b"as it was")
    done = subprocess.run([sys.executable, "-c", WRITER, how], cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode != 0
    assert contents(tmp_path) == {"out.bin": b"as it was"}


def test_nameless_files_are_an_improvement_and_no_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """File systems differ: some have no nameless files, some have them and cannot give them a name."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(95, "not supported")

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", refuse)
        with atomic_write(tmp_path / "a") as file:
            file.write(b"one")
    with monkeypatch.context() as patch:
        patch.delattr(os, "O_TMPFILE", raising=False)
        with atomic_write(tmp_path / "b") as file:
            file.write(b"two")
        with pytest.raises(ZeroDivisionError), atomic_write(tmp_path / "b") as file:
            file.write(b"half")
            raise ZeroDivisionError
    assert contents(tmp_path) == {"a": b"one", "b": b"two"}
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_the_folder_of_an_output_is_made(tmp_path: Path) -> None:
    out = tmp_path / "absent" / "deeper" / "out.onnx"
    assert onnxcomp.optimize(cnn(tmp_path), output=out, passes="fuse-batchnorm", bench=False).exit_code == 0
    assert out.is_file()


def test_a_hard_link_to_the_input_is_refused_and_both_stay(tmp_path: Path) -> None:
    model = cnn(tmp_path)
    os.link(model, tmp_path / "hard.onnx")
    before = contents(tmp_path)
    with pytest.raises(OutputError, match="overwrite the input"):
        onnxcomp.optimize(model, output=tmp_path / "hard.onnx", passes="fuse-batchnorm", bench=False)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["state/build.lock", None])
def test_a_full_disk_is_no_defect_of_ours_whichever_file_it_meets(
    name: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*arguments: object, **named: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)

    monkeypatch.setattr(main_module.group, "main", full)
    assert main_module._code(["build"]) == 6
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 3 and "cannot be written" in told[0] and (name or "TMPDIR") in told[1]
