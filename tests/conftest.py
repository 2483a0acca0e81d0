"""Settings of all tests."""

import os

# small tensors on a busy machine: threads only wait for each other. torch reads it when it is imported, which
# the process that hands out the tests never does
os.environ.setdefault("OMP_NUM_THREADS", "1")
