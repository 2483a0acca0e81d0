"""`deterministic=true`: the same command on the same machine computes the same bits."""

from __future__ import annotations

import contextlib
import os
import random
import re
from collections.abc import Iterator

import numpy as np
import torch

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
CUBLAS_ALLOWED = (":4096:8", ":16:8")  # with which cuBLAS adds up in one order
REFUSED = re.compile(r"(\w[\w.() ]*?) does not have a deterministic implementation")


class NotDeterministicError(ValueError):
    """An operation that gives other bits in every run, where the same ones were asked for."""


@contextlib.contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Compute deterministically, in this process and until the end; false leaves everything as it is.

    Kernels are the deterministic ones, none is chosen by timing, cuBLAS gets a workspace that makes it add up
    in one order, and the global streams of Python and numpy are seeded (torch's is by every run, and what a
    loader draws follows from epoch and image, in the loader's processes too). On a CPU this is so without it,
    for the operations that are used here.

    To be entered before CUDA starts. Afterwards the switches of torch are as before.

    Args:
        wanted: `deterministic` of the config.

    Raises:
        NotDeterministicError: On leaving: an operation has no deterministic implementation.
        ValueError: The environment has a workspace for cuBLAS that does not do.
    """
    if not wanted:
        yield
        return
    given = os.environ.setdefault(CUBLAS, CUBLAS_ALLOWED[0])
    if given not in CUBLAS_ALLOWED:
        raise ValueError(
            f"{CUBLAS} is {given!r} in the environment; deterministic=true allows "
            f"{' and '.join(CUBLAS_ALLOWED)}: unset it"
        )
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 the stream that libraries draw from
    backend = torch.backends.cudnn
    before = torch.are_deterministic_algorithms_enabled(), backend.benchmark, backend.deterministic
    torch.use_deterministic_algorithms(True)
    backend.benchmark, backend.deterministic = False, True
    try:
        yield
    except RuntimeError as error:
        found = REFUSED.search(str(error))
        if not found:
            raise
        raise NotDeterministicError(
            f"{found[1]} has no deterministic implementation here, and deterministic is true; "
            "deterministic=false permits it, or choose a task, backbone or probe that does without"
        ) from error
    finally:
        torch.use_deterministic_algorithms(before[0])
        backend.benchmark, backend.deterministic = before[1:]
