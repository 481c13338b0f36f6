"""The parts of the pass quantize-qdq: which nodes, which ranges, which weights, and how they are written."""
