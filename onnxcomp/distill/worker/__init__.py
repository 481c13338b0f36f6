"""The process that trains: plain scripts in an environment of their own, which import nothing of onnxcomp.

Started by path (`start.py`) by the interpreter that holds onnxruntime-training; spoken to in JSON lines (`main.py`).
"""
