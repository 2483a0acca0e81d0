"""Settings of all tests."""

import gc
import os
from collections.abc import Generator

import pytest

# small tensors on a busy machine: threads only wait for each other. torch reads it when it is imported, which
# the process that hands out the tests never does
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Import all tests without searching for garbage, which takes a quarter of it; what they import stays."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()
