"""Sessions, providers, streaming activation statistics and latency on ONNX Runtime."""

import os

# ONNX Runtime's wheels for Linux report usage and leave an identifier in the user's cache unless told not to; it reads
# this when it is imported, which only this package and the training worker, our child, do
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
