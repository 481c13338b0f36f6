"""Real models out of pinned packages: what real_models.py runs."""
