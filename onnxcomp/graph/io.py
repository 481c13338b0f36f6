"""Model files to graphs and back: clear errors on bad files, atomic writes, external data streamed."""

from __future__ import annotations

import hashlib
import mmap
import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError, EncodeError
from onnx import TensorProto
from onnx.external_data_helper import load_external_data_for_tensor

from onnxcomp.errors import ModelError, OutputError
from onnxcomp.files import atomic_write, scratch, sha256_of
from onnxcomp.graph.codec import all_tensors, decode, encode
from onnxcomp.graph.functions import check_expansion
from onnxcomp.graph.ir import Constant, Graph, elem_type, is_onnx, tensor_proto
from onnxcomp.graph.shapes import check_structure
from onnxcomp.graph.stored import external_location
from onnxcomp.lock import try_lock

EXTERNAL_ABOVE_BYTES = 1_800_000_000  # protobuf messages end at 2 GiB
EXTERNAL_TENSOR_BYTES = 1024  # smaller tensors stay in the .onnx file, where shape inference can read them
ALIGNMENT_BYTES = 4096  # lets runtimes map the tensors


def load(path: str | Path, *, keep_initializer_inputs: bool = False) -> Graph:
    """Read a model file and check it, as every command does first. Weights stay in the file until a pass reads them.

    Args:
        path: the .onnx file; external data is looked for beside it.
        keep_initializer_inputs: leave weights that are listed as graph inputs among the inputs.

    Raises:
        ModelError: the file is missing, truncated, not ONNX, too new, refers to missing external data, has functions
            that call themselves or come to too many nodes, or is not valid ONNX.
    """
    return read(Path(path), keep_initializer_inputs=keep_initializer_inputs)[0]


def read(path: Path, *, keep_initializer_inputs: bool = False) -> tuple[Graph, list[Path]]:
    """As `load`; beside the graph the files that it lies in, as `model_files` tells them.

    Raises:
        ModelError: as `load`.
    """
    model = read_proto(path)
    files = _files_of(model, path)
    check_expansion(model)
    try:
        graph = decode(model, path.parent, keep_initializer_inputs=keep_initializer_inputs)
        graph.source = path.resolve()
        written = list(graph.nodes)
        graph.sort()
        if graph.nodes != written:
            graph.notes.append("the file's nodes did not stand in an order that runs, and were sorted")
        check_structure(graph, strict=False)  # which writes every name
    except UnicodeDecodeError as error:  # protobuf reads such text, and does not write it
        raise _not_utf8(error.object, f"file {path}") from error
    return graph, files


def _not_utf8(text: object, where: str) -> ModelError:
    return ModelError(f"a name or text is not UTF-8: {text!r}", where=where, do="export the model again")


def _is_text(path: Path) -> bool:
    """Whether a file begins with text: a page of a download that failed, a pointer of Git LFS, a script."""
    with path.open("rb") as file:
        start = file.read(4096)
    try:
        text = start.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(start) - 4:  # not only a character that the end of the piece cuts in two
            return False
        text = start[: error.start].decode("utf-8")
    return bool(text) and all(sign.isprintable() or sign.isspace() for sign in text)


def read_proto(path: Path) -> onnx.ModelProto:
    """The ModelProto of a file, external data not loaded but checked to be there.

    Raises:
        ModelError: as `load`.
    """
    where = f"file {path}"
    try:
        model = onnx.load_model(str(path), format="protobuf", load_external_data=False)
    except FileNotFoundError as error:
        raise ModelError("the model file does not exist", where=where, do="check the path") from error
    except OSError as error:
        raise ModelError(
            f"the model file cannot be read: {error.strerror}", where=where, do="check the path"
        ) from error
    except (DecodeError, ValueError) as error:
        if _is_text(path):
            raise ModelError(
                "this is a text file, not an ONNX model", where=where, do="give a file that an ONNX exporter wrote"
            ) from error
        raise ModelError(
            "this is not an ONNX model, or it is truncated, or its bodies nest deeper than protobuf reads",
            where=where,
            do="copy or export the file again",
        ) from error
    if not model.HasField("graph") or not model.ir_version:
        raise ModelError("this is not an ONNX model", where=where, do="give a file that an ONNX exporter wrote")
    if not model.graph.output:
        raise ModelError("the model has no outputs", where=where, do="name what it gives as outputs of the graph")
    _check_versions(model, where)
    for tensor in _external_tensors(model.graph):
        _check_entries(tensor.external_data, where)
        external_location(tensor, path.parent)
    return model


def read_whole(path: Path) -> onnx.ModelProto:
    """The ModelProto of a file with all of its weights inside.

    Raises:
        ModelError: as `load`.
    """
    model = read_proto(path)
    onnx.load_external_data_for_model(model, str(path.parent))
    return model


def small_inside(path: Path) -> bytes:
    """The bytes of a model file that has external data, with its small tensors in the message itself.

    Shape inference does not look into external data; a model may have been saved with all of its tensors there.

    Raises:
        ModelError: as `load`.
    """
    model = read_proto(path)
    for tensor in list(_external_tensors(model.graph)):
        if external_location(tensor, path.parent)[2] < EXTERNAL_TENSOR_BYTES:
            load_external_data_for_tensor(tensor, str(path.parent))
            tensor.data_location = TensorProto.DEFAULT
            del tensor.external_data[:]
    return _serialized(model)


def write_proto(model: onnx.ModelProto, path: Path) -> None:
    """Write a model that somebody made in memory, as it is.

    Raises:
        ModelError: it does not fit protobuf's 2 GiB.
        OutputError: the folder cannot be written.
    """
    with atomic_write(path) as file:
        file.write(_serialized(model))


def save(graph: Graph, path: str | Path) -> list[Path]:
    """Write a model file so that it appears whole or not at all; the same graph gives the same bytes.

    External data is written first, to NAME.HASH.data beside the model, when the model came with external data or
    would pass protobuf's 2 GiB.

    Returns:
        The files written, the .onnx file first.

    Raises:
        OutputError: the folder cannot be written, or `path` is the file the graph was loaded from.
    """
    path = Path(path)
    if graph.source is not None and path.resolve() == graph.source:
        raise OutputError("the output would overwrite the input model", where=f"file {path}", do="choose another -o")
    written: list[Path] = []
    with ExitStack() as stack:
        apart = graph.external or total_bytes(graph) > EXTERNAL_ABOVE_BYTES
        if apart and any(map(_goes_apart, _initializers(graph))):
            model = _with_external_data(graph, path, written)
            stack.enter_context(_held(written[0]))
        else:
            model = encode(graph)
        with atomic_write(path) as file:
            file.write(_serialized(model))
    _remove_stale_data(path, graph.source)
    return [path, *written]


@contextmanager
def _held(data: Path) -> Iterator[None]:
    """Keep a data file from being taken for an abandoned one until the model that names it stands."""
    with data.open("rb") as file:
        with suppress(OSError):
            try_lock(file.fileno())
        if not data.exists():
            raise OutputError("another run writes here", where=f"file {data}", do="give each run an output of its own")
        yield


def _remove_stale_data(path: Path, source: Path | None) -> None:
    """Remove data files that earlier runs wrote for this output and that no model of the folder names any more.

    Only what is provably such a file goes: its name holds the hash of its bytes, it has that one name, no run is just
    writing its model, and it is not the source's.
    """
    pattern = re.compile(re.escape(f"{path.stem}.") + r"([0-9a-f]{12})\.data")
    found = {file: made.group(1) for file in path.parent.iterdir() if (made := pattern.fullmatch(file.name))}
    if not found:
        return
    kept = {file.resolve() for file in model_files(source)} if source is not None and source.exists() else set()
    for file, digest in found.items():
        if file.is_symlink() or file.resolve() in kept or file.stat().st_nlink > 1:
            continue
        with file.open("rb") as held, suppress(OSError):
            if try_lock(held.fileno()) and not _named(file) and sha256_of(file).startswith(digest):
                file.unlink()


def _named(data: Path) -> bool:
    """Whether a model in the same folder names a data file."""
    for model in data.parent.glob("*.onnx"):
        with (
            model.open("rb") as file,
            suppress(ValueError),
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as raw,
        ):
            if raw.find(data.name.encode()) >= 0:
                return True
    return False


def to_bytes(graph: Graph) -> bytes:
    """The model as one message, weights inside.

    Raises:
        ModelError: it does not fit protobuf's 2 GiB.
    """
    return _serialized(encode(graph))


@contextmanager
def runnable(graph: Graph) -> Iterator[bytes | Path]:
    """The model in a form that a runtime opens: bytes, or a temporary file where it is too large for that."""
    if total_bytes(graph) <= EXTERNAL_ABOVE_BYTES // 2:
        yield to_bytes(graph)
        return
    with scratch() as folder:
        copy = graph.clone()
        copy.external = True
        path = folder / "model.onnx"
        save(copy, path)
        yield path


def total_bytes(graph: Graph) -> int:
    """Bytes of all initializers as stored, without reading them."""
    return sum(constant.nbytes for constant in (*graph.constants(), *graph.unused))


def model_files(path: Path) -> list[Path]:
    """The .onnx file and the external data files it refers to.

    Raises:
        ModelError: as `load`.
    """
    return _files_of(read_proto(path), path)


def _files_of(model: onnx.ModelProto, path: Path) -> list[Path]:
    found = dict.fromkeys(external_location(t, path.parent)[0] for t in _external_tensors(model.graph))
    return [path, *found]


def _serialized(model: onnx.ModelProto) -> bytes:
    try:
        data: bytes = model.SerializeToString(deterministic=True)
    except (EncodeError, ValueError) as error:
        raise ModelError(
            "the model does not fit protobuf's 2 GiB", where="serialization", do="save it with external data"
        ) from error
    return data


def _check_versions(model: onnx.ModelProto, where: str) -> None:
    newest = onnx.defs.onnx_opset_version()
    version = next((o.version for o in model.opset_import if is_onnx(o.domain)), None)
    if version is None and not model.opset_import:
        raise ModelError("the model imports no operator set", where=where, do="export it with an opset version")
    if version is not None and not 1 <= version <= newest:
        raise ModelError(
            f"the model uses opset {version}, and the installed onnx knows up to {newest}",
            where=where,
            do="upgrade onnx, or export with an older opset",
        )


def _check_entries(entries: Iterable[onnx.StringStringEntryProto], where: str) -> None:
    """Refuse what is no UTF-8, of which protobuf makes bytes, before anything takes it for text."""
    for entry in entries:
        for text in (entry.key, entry.value):
            if isinstance(text, bytes):
                raise _not_utf8(text, where)


def _external_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    return (t for t in all_tensors(graph) if t.data_location == TensorProto.EXTERNAL)


def _initializers(graph: Graph) -> dict[Constant, None]:
    return dict.fromkeys((*graph.constants(), *graph.unused))


def _goes_apart(constant: Constant) -> bool:
    """Whether a tensor lies in the data file, where there is one."""
    return constant.nbytes >= EXTERNAL_TENSOR_BYTES and constant.dtype != np.dtype(object) and not constant.sparse


def _with_external_data(graph: Graph, path: Path, written: list[Path]) -> onnx.ModelProto:
    """Encode with large tensors in a data file named by its hash; each is read, written and let go in turn."""
    placed: dict[Constant, tuple[int, int]] = {}
    digest = hashlib.sha256()
    staging = path.with_name(f"{path.stem}.data")
    hashed: list[Path] = []

    def finish() -> Path:
        final = path.with_name(f"{path.stem}.{digest.hexdigest()[:12]}.data")
        hashed.append(final)
        return final

    with atomic_write(staging, rename=finish) as file:
        position = 0
        for constant in filter(_goes_apart, _initializers(graph)):
            padding = bytes(-position % ALIGNMENT_BYTES)
            data = _raw(constant)
            for part in (padding, data):
                file.write(part)
                digest.update(part)
            placed[constant] = (position + len(padding), data.nbytes)
            position += len(padding) + data.nbytes
            del data, part
            let_go(constant)
    written.append(hashed[0])
    return encode(graph, lambda c: _reference(c, hashed[0].name, *placed[c]) if c in placed else tensor_proto(c))


def _raw(constant: Constant) -> memoryview:
    """The tensor's bytes in ONNX's raw form: little endian, 4- and 2-bit values packed."""
    array = np.asarray(constant.values)
    if constant.nbytes == array.nbytes:
        return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    return memoryview(tensor_proto(constant).raw_data)


def let_go(constant: Constant) -> None:
    """Give back the pages of a mapped file that a view holds, e.g. a transposed weight; the file keeps them."""
    base: object = constant.payload
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)


def _reference(constant: Constant, location: str, offset: int, length: int) -> onnx.TensorProto:
    proto = onnx.TensorProto(
        name=constant.name,
        data_type=elem_type(constant.dtype),
        dims=constant.shape,
        data_location=TensorProto.EXTERNAL,
    )
    if constant.envelope is not None:
        proto.MergeFrom(constant.envelope)
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        proto.external_data.add(key=key, value=value)
    return proto
