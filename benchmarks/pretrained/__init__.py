"""Encoders that others trained, evaluated by retrieval."""
