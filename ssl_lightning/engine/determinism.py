"""Deterministic runs (`deterministic=true`): the same command on the same machine gives equal bits."""

from __future__ import annotations

import contextlib
import os
import random
import re
from collections.abc import Iterator

import numpy as np
import torch

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
CUBLAS_ALLOWED = (":4096:8", ":16:8")  # workspaces for which cuBLAS sums in a fixed order
REFUSED = re.compile(r"(\w[\w.() ]*?) does not have a deterministic implementation")


class NotDeterministicError(ValueError):
    """An operation has no deterministic implementation, but the run asks for one."""


@contextlib.contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Compute deterministically in this process until the end of the context; do nothing if not wanted.

    Torch uses deterministic kernels and does not choose kernels by timing. With the given workspace, cuBLAS
    sums in a fixed order. The global streams of Python and numpy are seeded; every run seeds torch's, and the
    draws of a loader follow from epoch and image, also in its processes. On a CPU the operations of this
    project are deterministic without this switch.

    Enter the context before CUDA starts. At the end, the switches of torch are restored.

    Args:
        wanted: `deterministic` of the config.

    Raises:
        NotDeterministicError: An operation inside the context has no deterministic implementation.
        ValueError: The environment sets a cuBLAS workspace that is not deterministic.
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
    np.random.seed(0)  # noqa: NPY002 libraries draw from the global stream
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
