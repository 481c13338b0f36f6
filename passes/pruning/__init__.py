"""Which weights go, and what the others become: selection, masked least squares, allocation over layers."""
