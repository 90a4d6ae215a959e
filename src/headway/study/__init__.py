"""Experiments under a virtual clock: one run, many runs, and what they say."""
