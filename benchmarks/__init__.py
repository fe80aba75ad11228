"""Experiments and comparisons: each a command, each with its result file beside it."""
