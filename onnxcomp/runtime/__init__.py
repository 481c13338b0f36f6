"""Sessions, providers, streaming activation statistics and latency on ONNX Runtime."""
