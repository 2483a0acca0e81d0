"""Plain description of a task in a checkpoint, and the task that it describes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self, TypeVar, cast

import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from torch import nn

from ssl_lightning.artifacts.checkpoints import load_checkpoint
from ssl_lightning.artifacts.run_folder import CONFIG
from ssl_lightning.artifacts.state_dicts import mismatches
from ssl_lightning.artifacts.weights import build_network
from ssl_lightning.config.trust import check_targets, load_config
from ssl_lightning.core.image_spec import ImageSpec
from ssl_lightning.networks.recipes import is_recorded, layers_of, plain, recipe_of

STORED = "pretext_task"  # key of the description in a checkpoint
BUILT = ("task", "data", "backbone")  # parts of a config that rebuild the task of a run
NOT_LOADED = ("cache_dir",)  # keywords of a file that would write elsewhere

Task = TypeVar("Task", bound=nn.Module)


class StoredTask(pl.LightningModule):
    """A task that keeps the keywords of its constructor, so that a checkpoint can rebuild it."""

    keywords: dict[str, Any]
    image_format: torch.memory_format

    def __new__(cls, *args: Any, **keywords: Any) -> Self:
        task = super().__new__(cls)
        task.__dict__["keywords"] = keywords  # as given, for checkpoints
        return task

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: Any,
        map_location: Any = None,
        hparams_file: Any = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        **keywords: Any,
    ) -> Self:
        """Load a trained task from a checkpoint of any Trainer, or of a run of `train.py`.

        The file is read without running code. It holds the weights, the keywords, the spec, and a description
        of the backbone. It has no optimizer and no scheduler: give them again to train with your own.

        Args:
            checkpoint_path: The file.
            map_location: Device of the task; None is the CPU.
            hparams_file: Not supported.
            strict: Not supported; all weights must fit.
            weights_only: Always true.
            **keywords: Keywords that replace the stored ones. `backbone=` is needed for a backbone that is
                neither of this package, nor of timm or torchvision.

        Returns:
            The task, in training mode, as Lightning does it.

        Raises:
            ValueError: The file is broken or of another task, or its backbone is unknown.
        """
        task = load_task(cls, checkpoint_path, keywords)
        return task.to(map_location or "cpu").to(memory_format=task.image_format)


class Origin:
    """Description of a backbone as it was before training changed it.

    Args:
        backbone: The backbone of a new task.
    """

    def __init__(self, backbone: nn.Module) -> None:
        self.kind = type(getattr(backbone, "_network", backbone)).__name__
        self.layers = None if is_recorded(backbone) else layers_of(backbone)
        self._recipe: dict[str, Any] | None = None
        self._searched = False

    def recipe(self, backbone: nn.Module) -> dict[str, Any] | None:
        """Return `recipe_of` the backbone, found once; None if it is unknown."""
        if not self._searched:
            self._recipe, self._searched = recipe_of(backbone), True
        return self._recipe


def description_of(task: Any) -> dict[str, Any]:
    """Describe a task by plain values; keywords of other kinds, such as the optimizer, are left out.

    Args:
        task: A task that was built.
    """
    return {
        "task": type(task).__name__,
        "keywords": _plain_only(task.keywords),
        "spec": asdict(task.spec),
        "backbone": task.origin.recipe(task.backbone),
        "backbone_kind": task.origin.kind,
        "layers": task.origin.layers,
    }


def stored_spec(checkpoint: Mapping[str, Any]) -> ImageSpec | None:
    """Return the spec in a checkpoint; None if it has none."""
    stored = checkpoint.get(STORED)
    return None if stored is None else _spec(stored)


def load_task(kind: type[Task], path: Any, keywords: Mapping[str, Any]) -> Task:
    """Rebuild a task from a checkpoint, with its weights.

    Args:
        kind: Class of the task.
        path: The checkpoint, of any Trainer or of a run.
        keywords: Keywords that replace the stored ones.

    Raises:
        ValueError: The file is broken or of another task, or its backbone is unknown.
    """
    path, given = Path(path), dict(keywords)
    content = load_checkpoint(path)
    stored = content.get(STORED) or _stored_by_run(path)
    if not isinstance(stored, dict):
        raise ValueError(
            f"{path} is not a checkpoint of a pretext task, and no {CONFIG} of a run is beside it"
        )
    if stored.get("task") != kind.__name__:
        raise ValueError(f"{path} holds the task {stored.get('task')}; load it by {stored.get('task')}.")
    try:
        spec = given.pop("spec", None) or _spec(stored)
        own = {key: value for key, value in stored["keywords"].items() if key not in NOT_LOADED}
        backbone = given.pop("backbone", None) or _backbone(stored, path, kind.__name__)
        task = kind(backbone, spec, **(own | given))
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} does not describe its task: {type(error).__name__}: {error}") from error
    if wrong := mismatches(task.state_dict(), content.get("state_dict", {})):
        raise ValueError(f"{path} does not fit the task and its backbone: {'; '.join(wrong)}")
    task.load_state_dict(content["state_dict"])
    return task


def _spec(stored: Mapping[str, Any]) -> ImageSpec:
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in stored["spec"].items()}
    return ImageSpec(**values)


def _backbone(stored: Mapping[str, Any], path: Path, task: str) -> nn.Module:
    """Rebuild the backbone, if it is known and has the layers that it had."""
    recipe, layers = stored.get("backbone"), stored.get("layers")
    if isinstance(recipe, dict):
        backbone = build_network(recipe, path)
        if layers is None or layers_of(backbone) == layers:
            return backbone
    kind = stored.get("backbone_kind")
    raise ValueError(
        f"{path} cannot rebuild its backbone, a {kind} of your own; give a new one of the same kind: "
        f"{task}.load_from_checkpoint({str(path)!r}, backbone=...)"
    )


def _stored_by_run(path: Path) -> dict[str, Any] | None:
    """Describe the task of an old run folder by its config and its data set; None if there is no config.

    Raises:
        ValueError: The config is broken or names untrusted code.
    """
    config = path.parent.parent / CONFIG
    if not config.is_file():
        return None
    from hydra.utils import get_class, instantiate

    cfg = load_config(config)
    parts = {key: cast(dict[str, Any], OmegaConf.to_container(cfg[key])) for key in BUILT}
    check_targets(parts, config)
    data = instantiate(cfg.data)
    data.prepare_data()
    data.setup()
    kind: Any = get_class(cfg.task._target_)
    return {
        "task": kind.__name__,
        "keywords": {key: value for key, value in parts["task"].items() if key != "_target_"}
        | {"seed": cfg.seed, "channels_last": cfg.channels_last},
        "spec": asdict(data.spec),
        "backbone": parts["backbone"] | {"in_channels": kind.backbone_channels(data.spec)},
    }


def _plain_only(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keywords that a checkpoint can hold."""
    found = {}
    for name, value in keywords.items():
        try:
            found[name] = plain(value)
        except TypeError:
            continue
    return found
