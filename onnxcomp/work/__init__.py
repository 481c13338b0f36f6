"""Runs as objects: a study opens everything once, a trial is a spec string and what it measures to."""
