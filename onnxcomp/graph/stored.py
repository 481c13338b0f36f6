"""How does the value of a tensor lie in a model file: does it fit its shape, where is it, how is it read?"""

from __future__ import annotations

from math import prod
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.helper import tensor_dtype_to_np_dtype

from onnxcomp.errors import ModelError
from onnxcomp.graph.ir import Array, Constant, Stored, stored_bytes

LONGEST_NAME, LONGEST_PATH = 255, 4000  # of a file and of a path, as file systems have it
_TYPES = frozenset(helper.get_all_tensor_dtypes())


def check_values(proto: onnx.TensorProto) -> None:
    """Refuse a tensor of no known type, of sizes that its data do not have, or with texts that are not UTF-8."""
    where = f"tensor {proto.name or '(no name)'}"
    known_type(proto.data_type, where)
    _check_size(proto, where)
    try:
        for text in proto.string_data:
            text.decode()
    except UnicodeDecodeError as error:
        raise ModelError(
            f"text is not UTF-8: {error.reason} at byte {error.start}", where=where, do="export the model again"
        ) from error


def _check_size(proto: onnx.TensorProto, where: str) -> None:
    """Whether the data in a tensor have the size that its shape says."""
    if min(proto.dims, default=0) < 0:
        raise ModelError(f"a size is negative: {list(proto.dims)}", where=where, do="export the model again")
    count = prod(proto.dims)
    if proto.data_location == TensorProto.EXTERNAL:
        return
    dtype = tensor_dtype_to_np_dtype(proto.data_type)
    if proto.HasField("raw_data"):
        unit, stored, wanted = "bytes", len(proto.raw_data), stored_bytes(count, dtype)
    else:
        stored = len(getattr(proto, helper.tensor_dtype_to_field(proto.data_type)))
        unit, wanted = "values", count * (2 if dtype.kind == "c" else 1)
        if dtype.name.endswith(("int4", "int2", "e2m1fn")):
            wanted = stored_bytes(count, dtype)
    if stored != wanted:
        raise ModelError(
            f"the data of a tensor do not fit its shape {list(proto.dims)}: {wanted} {unit} wanted, {stored} there",
            where=where,
            do="copy or export the file again",
        )


def known_type(number: int, where: str) -> None:
    """Refuse the number of an element type that ONNX does not have."""
    if number not in _TYPES:
        raise ModelError(
            f"element type {number} is not one that ONNX has", where=where, do="export the model again, or upgrade onnx"
        )


def read(stored: Stored, name: str) -> Array:
    """The value of a tensor.

    Raises:
        ModelError: its data do not fit its shape.
    """
    try:
        return stored.read()
    except ValueError as error:
        raise ModelError(
            f"the data of a tensor do not fit its shape: {error}", where=f"tensor {name}", do="export the model again"
        ) from error


def external_location(proto: onnx.TensorProto, folder: Path | None) -> tuple[Path, int, int]:
    """File, offset and length in bytes of a tensor's external data.

    Raises:
        ModelError: the path leaves the model's folder, the file is missing or too short.
    """
    entries = {entry.key: entry.value for entry in proto.external_data}
    location = entries.get("location", "")
    where = f"tensor {proto.name}, external data {location!r}"
    if (
        "\0" in location
        or max(map(len, Path(location).parts), default=0) > LONGEST_NAME
        or len(location) > LONGEST_PATH
    ):
        raise ModelError("external data entry is malformed", where=where, do="export the model again")
    base = (folder or Path()).resolve()
    path = (base / location).resolve()
    if proto.data_type == TensorProto.STRING:
        raise ModelError("text is kept in external data, where ONNX has none", where=where, do="export the model again")
    if not location or Path(location).is_absolute() or ".." in Path(location).parts:
        raise ModelError(
            "external data outside the model's folder is refused",
            where=where,
            do="put the data file beside the model and export it with a relative location",
        )
    if not path.is_relative_to(base):
        raise ModelError(
            "external data behind a link that leaves the model's folder is refused",
            where=f"{where} is {path}",
            do="copy the files themselves into one folder, e.g. with cp -L",
        )
    if not path.is_file():
        raise ModelError("the model's external data is missing", where=where, do=f"put {location} beside the model")
    try:
        offset = int(entries.get("offset") or 0)
        dtype = tensor_dtype_to_np_dtype(proto.data_type)
        needed = stored_bytes(prod(proto.dims), dtype)
        length = int(entries.get("length") or needed)
    except (ValueError, KeyError) as error:
        raise ModelError(
            f"external data entry is malformed: {error}", where=where, do="export the model again"
        ) from error
    if offset < 0 or length < needed or offset + length > path.stat().st_size:
        raise ModelError(
            "the model's external data is truncated",
            where=f"{where}: {needed} bytes at {offset} wanted, the file has {path.stat().st_size}",
            do="copy or export the data file again",
        )
    return path, offset, length


def mapped(proto: onnx.TensorProto, path: Path, offset: int, length: int) -> Array:
    """A view of the mapped file for plain types; packed types are decoded from a copy of their bytes."""
    dtype = tensor_dtype_to_np_dtype(proto.data_type)
    count = prod(proto.dims)
    if count == 0:
        return np.zeros(tuple(proto.dims), dtype)
    if dtype.itemsize * count <= length and not dtype.name.endswith(("int4", "int2", "e2m1fn")):
        view: Array = np.memmap(path, np.uint8, "r", offset, dtype.itemsize * count).view(np.ndarray)
        return view.view(dtype).reshape(tuple(proto.dims))
    inside = TensorProto(data_type=proto.data_type, dims=proto.dims)
    with path.open("rb") as file:
        file.seek(offset)
        inside.raw_data = file.read(length)
    return numpy_helper.to_array(inside)


def check_sparse(proto: onnx.SparseTensorProto) -> None:
    """Refuse places that lie outside of a sparse tensor, or are not one for each value."""
    where = f"sparse tensor {proto.values.name or '(no name)'}"
    check_values(proto.values)
    check_values(proto.indices)
    indices = numpy_helper.to_array(proto.indices)
    limits = np.asarray([prod(proto.dims)] if indices.ndim == 1 else proto.dims, np.float64)
    fits = indices.ndim in (1, 2) and len(indices) == len(numpy_helper.to_array(proto.values).reshape(-1))
    if not fits or (indices.ndim == 2 and indices.shape[1] != len(proto.dims)) or min(proto.dims, default=0) < 0:
        raise ModelError("its indices do not fit its values", where=where, do="export the model again")
    if indices.size and not ((indices >= 0).all() and (indices.reshape(len(indices), -1) < limits).all()):
        raise ModelError("an index lies outside of it", where=where, do="export the model again")


def dense(proto: onnx.SparseTensorProto) -> Array:
    """A sparse initializer as a dense array; indices are linear [nnz] or coordinates [nnz, rank]."""
    values = numpy_helper.to_array(proto.values)
    indices = numpy_helper.to_array(proto.indices)
    dense = np.zeros(tuple(proto.dims), values.dtype)
    if indices.ndim == 1:
        dense.reshape(-1)[indices] = values
    else:
        dense[tuple(indices.T)] = values
    return dense


def sparse_proto(constant: Constant) -> onnx.SparseTensorProto | None:
    """The value of an initializer as a sparse tensor; None where that takes more bytes than a dense one."""
    values = constant.values
    flat = values.reshape(-1)
    at = np.flatnonzero(flat)
    if at.size * (constant.dtype.itemsize + 8) >= constant.nbytes:
        return None
    made = onnx.SparseTensorProto(dims=values.shape)
    made.values.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(flat[at]), constant.name))
    made.indices.CopyFrom(helper.make_tensor(f"{constant.name}_at", TensorProto.INT64, at.shape, at))  # as varints
    return made
