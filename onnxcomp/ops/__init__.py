"""Facts about operators, one frozen record each, grouped by family."""
