"""What every test shares: the data root, deterministic seeds."""

import os
from pathlib import Path

# Before torch: processes that share the tests shall not share their cores as well.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data_root():
    """The folder with real data; tests that need it are skipped, with the reason, where it is absent."""
    root = os.environ.get("CONTRASTIVE_DATA")
    if not root:
        pytest.skip("real data: set CONTRASTIVE_DATA to a folder that holds MNIST/, FashionMNIST/, ...")
    if not Path(root).is_dir():
        pytest.fail(f"CONTRASTIVE_DATA is {root!r}, which is not a folder")
    return Path(root)


# Collected for doctests it would be imported a second time, and clash with the one of docs/.
collect_ignore = ["conftest.py"]
