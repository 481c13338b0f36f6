"""One view of a layer with weights: matrix, bias, axes, the sum behind it, how its input turns into rows."""
