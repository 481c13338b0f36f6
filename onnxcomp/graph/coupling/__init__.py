"""Which slices of which tensors must leave together? Labels that flow through the graph, one rule an operator."""
