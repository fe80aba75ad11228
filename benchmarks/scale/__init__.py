"""How a global batch grows with the number of ranks: ``python -m benchmarks.scale``."""
