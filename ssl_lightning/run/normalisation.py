"""A note on weights that get pixels of another mean and deviation than in their run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ssl_lightning.artifacts.input_transform import InputTransform
from ssl_lightning.artifacts.weights import MAX_CONFIG, config_beside, read_transform
from ssl_lightning.core.untrusted import read_json
from ssl_lightning.tasks.base import PretextTask


def changed_normalisation(task: PretextTask, folder: Path, weights: str | None) -> str:
    """Say if the backbone of a run now gets pixels of another mean and deviation, and how to keep its own.

    Args:
        task: The task, built for the data.
        folder: The folder of the evaluated run, or a new one.
        weights: Run folder or file of the weights; None for the weights of `folder`.

    Returns:
        A sentence, or "" if they are equal, or nothing tells them.
    """
    file = config_beside(folder if weights is None else Path(weights))
    if not file.is_file():
        return ""
    try:
        own = read_transform(read_json(file, MAX_CONFIG), file)
    except ValueError:
        return ""
    new = InputTransform.from_config(task.input_config())
    if len(own.mean) != len(new.mean) or (own.mean, own.std) == (new.mean, new.std):
        return ""
    return (
        f"standardised with these data's mean {_shown(new.mean)} and std {_shown(new.std)}; with the run's: "
        f"data.mean={_shown(own.mean)} data.std={_shown(own.std)}"
    )


def _shown(values: Sequence[float]) -> str:
    return "[" + ",".join(f"{value:.6g}" for value in values) + "]"
