"""Checks of what the methods of a task return; none waits for the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from ssl_lightning.core.errors import a_kind_of
from ssl_lightning.core.image_spec import CHANNELS, ImageSpec

Returned = TypeVar("Returned")
SCORES = "a dictionary of scalar tensors that has 'loss'"


class TaskContractError(ValueError):
    """A method of a task is missing, or does or returns something else than `PretextTask` describes."""


class UnknownImagesError(ValueError):
    """A task needs the spec of its images and does not know it yet.

    Args:
        task: The task, for its name.
    """

    def __init__(self, task: object) -> None:
        super().__init__(
            f"{type(task).__name__} knows its images once training starts; give spec=ImageSpec(...) to "
            "use it before"
        )


def build_checked(task: Any, spec: ImageSpec) -> None:
    """Build a task for its images.

    Raises:
        TaskContractError: Its `build` leaves out the one of the base class, or calls it too late.
    """
    try:
        task.build(spec)
        known = task.is_built
    except UnknownImagesError:
        known = False
    if not known:
        raise TaskContractError(f"build() of {type(task).__name__} must first call super().build(spec)")


def check_comparable(task: Any, images: int) -> None:
    """Raise ValueError if a batch over all processes has fewer images than the task compares."""
    if images < task.fewest_images:
        raise ValueError(
            f"the batch size is {images}, and {type(task).__name__} compares the images of a batch with each "
            f"other; allowed are {task.fewest_images} and more, such as data.batch_size=64 or "
            "DataLoader(..., batch_size=64)"
        )


def check_scores(task: object, scores: Any, method: str = "step") -> None:
    """Check the scores of a batch.

    Args:
        task: The task, for its name.
        scores: Return value of the method. With gradients enabled, the loss needs one.
        method: Name of the method.

    Raises:
        TaskContractError: They are not scalars by name, or a loss without a gradient.
    """
    place = f"{type(task).__name__}.{method}"
    if not isinstance(scores, Mapping):
        raise TaskContractError(f"{place} returned {a_kind_of(scores)}; it must return {SCORES}")
    if "loss" not in scores:
        found = f"no 'loss' but {', '.join(map(str, scores))}" if scores else "an empty dictionary"
        raise TaskContractError(f"{place} returned {found}; it must return {SCORES}")
    for name, value in scores.items():
        if not isinstance(value, Tensor):
            raise TaskContractError(f"{place}: {name!r} is {a_kind_of(value)}; it must be a scalar tensor")
        if value.numel() != 1:
            needed = "a scalar with a gradient" if name == "loss" else "a scalar"
            raise TaskContractError(
                f"{place}: {name!r} has shape {tuple(value.shape)}; {needed} is needed, such as its mean"
            )
    if torch.is_grad_enabled() and not scores["loss"].requires_grad:
        raise TaskContractError(f"{place}: 'loss' has no gradient; compute it without detach() and no_grad()")


def check_panel(
    images: Any,
    columns: Sequence[str],
    captions: Sequence[Sequence[str]],
    right: Sequence[Sequence[bool | None]],
    watched: int | None,
) -> None:
    """Check the fields of a panel against each other.

    Raises:
        ValueError: A shape or a length does not fit.
    """
    if not isinstance(images, Tensor):
        raise ValueError(f"images of Panel is {a_kind_of(images)}; it must be a tensor")
    if images.ndim != 5 or images.shape[2] not in CHANNELS or not images.numel():
        raise ValueError(
            f"images of Panel has shape {tuple(images.shape)}; allowed is (rows, columns, C, H, W) with C of "
            f"{', '.join(map(str, CHANNELS))}"
        )
    if not images.is_floating_point():
        raise ValueError(f"images of Panel is of {images.dtype}; it must be floats in [0, 1]")
    rows, wide = images.shape[:2]
    if isinstance(columns, str) or len(columns) != wide:
        raise ValueError(f"columns of Panel is {columns!r}; it must have {wide}, one a column of images")
    for name, lines in (("captions", captions), ("right", right)):
        lengths = [len(line) for line in lines]
        if lengths and lengths != [wide] * rows:
            raise ValueError(
                f"{name} of Panel has rows of lengths {lengths}; allowed are {rows} rows of {wide}, or none"
            )
    if watched is not None and not 0 <= watched < wide:
        raise ValueError(f"watched of Panel is {watched}; allowed are 0 to {wide - 1} and None")


def checked(task: object, method: str, value: Any, kind: type[Returned]) -> Returned:
    """Return a value that a method returned.

    Raises:
        TaskContractError: It is of another type.
    """
    if not isinstance(value, kind):
        raise TaskContractError(
            f"{type(task).__name__}.{method} returned {a_kind_of(value)}; it must return {a_kind_of(kind)}"
        )
    return value
