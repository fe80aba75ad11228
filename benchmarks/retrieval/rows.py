"""Clustered rows of any number, written a block at a time; a function of the seed."""

from pathlib import Path

import numpy as np

__all__ = ["ROWS_OF_A_CLASS", "WIDTH", "write"]

WIDTH = 128
ROWS_OF_A_CLASS, CLASSES_OF_A_TOPIC = 50, 40
_BLOCK = 2**17


def write(folder: Path, rows: int, *, seed: int = 0) -> tuple[Path, Path]:
    """Writes ``ROWS.npy`` and ``ROWS-labels.npy`` unless they are there.

    A row is the sum of three Gaussians of one width: of its topic, 0.7 times of its class, 1.5 times its own. The class
    of each row is drawn, so that rows stand in no order.

    Arguments:
        folder: where to.
        rows: how many.
        seed: of everything.
    """
    embeddings, labels = folder / f"{rows}.npy", folder / f"{rows}-labels.npy"
    if embeddings.exists() and labels.exists():
        return embeddings, labels
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    classes = max(1, rows // ROWS_OF_A_CLASS)
    topics = rng.standard_normal((-(-classes // CLASSES_OF_A_TOPIC), WIDTH), dtype=np.float32)
    centres = topics[np.arange(classes) // CLASSES_OF_A_TOPIC]
    centres += 0.7 * rng.standard_normal((classes, WIDTH), dtype=np.float32)
    of_row = rng.integers(classes, size=rows)
    new = embeddings.with_suffix(".new")
    written = np.lib.format.open_memmap(new, mode="w+", dtype=np.float32, shape=(rows, WIDTH))
    for first in range(0, rows, _BLOCK):
        block = of_row[first : first + _BLOCK]
        written[first : first + _BLOCK] = centres[block]
        written[first : first + _BLOCK] += 1.5 * rng.standard_normal((len(block), WIDTH), dtype=np.float32)
    written.flush()
    new.rename(embeddings)
    np.save(labels, of_row)
    return embeddings, labels
