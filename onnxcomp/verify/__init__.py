"""Judging a pair of models: structure, fidelity, accuracy, budgets."""
