"""Which form does each layer take under a budget? One allocator, which every pass that has to choose asks."""
