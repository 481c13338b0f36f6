"""Which layers of a model paid for its compression, how much, why, and what to do about it."""
