"""Which units of a graph leave, and what the layers that read them become."""
