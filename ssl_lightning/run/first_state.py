"""What a run begins with besides its seed: given weights, or a checkpoint. Refused before anything else."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from ssl_lightning.artifacts.checkpoints import load_checkpoint
from ssl_lightning.artifacts.state_dicts import AllocationLimit, misfits
from ssl_lightning.artifacts.weights import read_state
from ssl_lightning.data.base import PairedDataModule
from ssl_lightning.run.build import build_task
from ssl_lightning.tasks.base import PretextTask

PROBED = {"state_dict": dict}  # what a checkpoint must hold to be probed, and to be gone on with
RESUMED = {
    "state_dict": dict, "epoch": int, "global_step": int, "pytorch-lightning_version": str, "loops": dict,
    "callbacks": dict, "optimizer_states": list, "lr_schedulers": list,
}  # fmt: skip

OWN = ("Throughput", "DivergenceGuard", "Metrics")  # callbacks of every run, whose counts go on


class FirstState:
    """The files that a run begins with.

    Args:
        cfg: Resolved.
        resumed_from: The checkpoint that the run goes on from; Lightning restores it.
        checkpoint: The one that a task gets in order to be probed, if it is one that is trained.
        untrained: Figures of the trunk as initialised that are there already.

    Raises:
        ValueError: A file is absent, broken, foreign, or of a newer version.
    """

    def __init__(
        self,
        cfg: DictConfig,
        resumed_from: Path | None,
        checkpoint: Path | None,
        untrained: Sequence[Any] = (),
    ) -> None:
        task_class = cast(type[PretextTask], get_class(cfg.task._target_))
        self.cfg, self.resumes = cfg, resumed_from is not None
        self.path = resumed_from or (checkpoint if task_class.needs_training else None)
        self.content = None if self.path is None else load_checkpoint(self.path)
        if self.content is not None:
            check_complete(self.content, str(self.path), RESUMED if self.resumes else PROBED)
        # the first weights are replaced at once, except where they are still to be probed
        probed_first = self.resumes and cfg.probe_untrained and not untrained
        self.replaced = self.path is not None and not probed_first
        self.weights = None if cfg.init_from is None else read_state(Path(cfg.init_from))

    def build(self, data: PairedDataModule) -> tuple[PretextTask, str]:
        """Build the task with them, and no larger than they are; see `build_task`.

        Raises:
            ValueError: The parts do not fit each other, or the checkpoint not the task.
        """
        cfg = self.cfg
        published = bool(cfg.backbone.get("pretrained"))
        if published and self.replaced:  # nothing is fetched that is not used
            cfg = cast(DictConfig, OmegaConf.merge(cfg, {"backbone": {"pretrained": False}}))
        limit: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        if self.path is not None:
            limit = AllocationLimit(self.path.stat().st_size, str(self.path))
        with limit:
            task, loaded = build_task(cfg, data, self.weights)
        if self.content is None:
            return task, loaded
        state, self.content = self.content["state_dict"], None
        if wrong := misfits(task.state_dict(), state):
            raise ValueError(f"{self.path} is of another task or trunk: {'; '.join(wrong)}")
        if self.resumes:
            return task, loaded or "published" * published
        task.load_state_dict(state)
        return task, str(self.path)


def check_complete(content: Mapping[str, Any], path: str, needed: Mapping[str, type]) -> None:
    """Refuse a checkpoint without all that a run needs of it.

    Raises:
        ValueError: Names what is missing, or of another kind.
    """
    if "callbacks" in needed and isinstance(content.get("callbacks"), dict):
        states = {f"the state of {name}": content["callbacks"].get(name) or None for name in OWN}
        content, needed = {**content, **states}, {**needed, **dict.fromkeys(states, dict)}
    for key, kind in needed.items():
        if type(content.get(key)) is not kind and not (kind is dict and isinstance(content.get(key), dict)):
            found = f"is of type {type(content[key]).__name__}" if key in content else "is missing"
            raise ValueError(
                f"{path} is no checkpoint of a run: {key} {found}. Mere weights are given as init_from= or "
                "evaluate.py weights="
            )
