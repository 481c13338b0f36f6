"""What a model file says beside its graph: the `metadata_props`."""

from __future__ import annotations

import onnx


def metadata_of(model: onnx.ModelProto) -> dict[str, str]:
    """Keys and values; what is no UTF-8, of which protobuf makes bytes, is read with replacement signs."""
    return {_text(entry.key): _text(entry.value) for entry in model.metadata_props}


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
