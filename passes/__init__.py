"""The built-in passes, imported as `onnxcomp.passes`; one pass a file."""

if __name__ != "onnxcomp.passes":  # imported from the checkout's root it would make twin classes of every pass
    raise ImportError("import onnxcomp.passes, not passes")
