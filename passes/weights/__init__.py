"""Weights in few bits: which elements share a scale, how rows become codes, and which kernels read them."""
