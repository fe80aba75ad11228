"""Retrieval at a size that does not fit the memory: what it takes."""
