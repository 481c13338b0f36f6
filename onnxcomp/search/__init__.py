"""The best compressed model under a budget: what can be tried, in which order, and what came of it."""
