"""Labels of classes: integers or names, and what data sets tell about them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset

LABEL_KEYS = ("label", "labels")  # of an item that is a dict
SHOWN = 10  # classes that a message names


def number_labels(
    train: tuple[Any, int, Sequence[str] | None], test: tuple[Any, int, Sequence[str] | None]
) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Number the classes of two labelled splits.

    Args:
        train: Labels, number of images, and class names or None, of `labelled_train`.
        test: The same of `test`.

    Returns:
        Labels (N,) int64 of both splits, and the class names in label order.

    Raises:
        ValueError: There are more or fewer labels than images, they are neither integers from 0 nor
            strings, or the classes of the splits do not fit.
    """
    labels, test_labels = plain_labels("labelled_train", *train[:2]), plain_labels("test", *test[:2])
    if isinstance(labels[0], str) != isinstance(test_labels[0], str):
        raise ValueError(
            f"labelled_train has labels such as {labels[0]!r}, and test such as {test_labels[0]!r}; both "
            "must be integers, or both class names"
        )
    if isinstance(labels[0], str):
        names = sorted(set(labels))
        number = {name: index for index, name in enumerate(names)}
        _check_known(set(test_labels) - number.keys(), names)
        labels, test_labels = [number[name] for name in labels], [number[name] for name in test_labels]
    else:
        names = _integer_classes(labels, train[2])
        if train[2] is not None and test[2] is not None and list(train[2]) != list(test[2]):
            raise ValueError(
                f"the classes of labelled_train are {list(train[2])}, and of test {list(test[2])}"
            )
        _check_known({label for label in test_labels if not 0 <= label < len(names)}, names)
    if len(names) < 2:
        raise ValueError(f"labelled_train has images of one class only, {names[0]}; at least 2 are needed")
    return torch.tensor(labels), torch.tensor(test_labels), tuple(names)


def plain_labels(name: str, labels: Any, count: int) -> list[Any]:
    """Return labels as a list of int, or a list of str; see `number_labels`."""
    values = labels.tolist() if isinstance(labels, (np.ndarray, Tensor)) else list(labels)
    if len(values) != count:
        raise ValueError(f"{name} has {count} images and {len(values)} labels; their numbers must be equal")
    values = [value.item() if isinstance(value, (np.generic, Tensor)) else value for value in values]
    values = [int(value) if isinstance(value, bool) else value for value in values]
    if not (all(isinstance(value, int) for value in values) or all(isinstance(v, str) for v in values)):
        odd = next((value for value in values if not isinstance(value, (int, str))), values[0])
        raise ValueError(
            f"{name} has a label {odd!r:.40}; allowed are integers from 0, or class names as strings"
        )
    return values


def quick_labels(data: Any) -> Any:
    """Return the labels of a data set that gives them without its images, or None."""
    columns = getattr(data, "column_names", None)
    if columns is not None:  # of Hugging Face
        key = next((key for key in LABEL_KEYS if key in columns), None)
        return None if key is None else data[key]
    transforms = [getattr(data, name, None) for name in ("transform", "target_transform", "transforms")]
    changed = transforms[1] is not None or (transforms[0] is None and transforms[2] is not None)
    return None if changed else getattr(data, "targets", None)  # of torchvision


def dataset_classes(data: Any) -> list[str] | None:
    """Return the class names of a torchvision or a Hugging Face data set, or of a subset; None without."""
    while isinstance(data, Subset):
        data = data.dataset
    features = getattr(data, "features", None)
    label = next((features[key] for key in LABEL_KEYS if key in features), None) if features else None
    names = getattr(label, "names", None) or getattr(data, "classes", None)
    # torchvision gives ImageNet's classes as tuples of synonyms
    return None if names is None else [name if isinstance(name, str) else str(name[0]) for name in names]


def _integer_classes(labels: list[int], given: Sequence[str] | None) -> list[str]:
    """Return the class names of integer labels, which are their numbers unless names are given."""
    count = max(labels) + 1 if given is None else len(given)
    if not 0 <= min(labels) <= max(labels) < count:
        raise ValueError(
            f"labelled_train has labels from {min(labels)} to {max(labels)}; allowed are 0 to "
            f"{count - 1 if given else 'the number of classes - 1'}"
        )
    missing = sorted(set(range(count)) - set(labels))
    if given is None and missing:
        raise ValueError(
            f"labelled_train has labels from {min(labels)} to {max(labels)} and no image of {missing[0]}; "
            "number the classes 0, 1, 2, ..., or give their names as strings"
        )
    return [str(number) for number in range(count)] if given is None else list(given)


def _check_known(unknown: set[Any], names: list[str]) -> None:
    if unknown:
        raise ValueError(
            f"test has a label {sorted(unknown)[0]!r}, which no image of labelled_train has; its classes are "
            f"{', '.join(names[:SHOWN])}"
        )
