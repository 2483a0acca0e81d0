"""Settings of all tests."""

import os

import torch

# small tensors on a busy machine: threads only wait for each other
torch.set_num_threads(int(os.environ.setdefault("OMP_NUM_THREADS", "1")))
