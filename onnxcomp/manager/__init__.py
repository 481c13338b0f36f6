"""Passes: what they are, how they are written as text, how they run and how they are found."""
