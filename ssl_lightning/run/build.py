"""Build a task from a config, with the initial weights of the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from ssl_lightning.artifacts.checkpoints import load_checkpoint
from ssl_lightning.artifacts.state_dicts import mismatches
from ssl_lightning.artifacts.weights import load_weights, read_state
from ssl_lightning.core.entry import command_line
from ssl_lightning.core.errors import first_line
from ssl_lightning.core.messages import tell
from ssl_lightning.core.seeding import stream_seed
from ssl_lightning.data.base import PairedDataModule
from ssl_lightning.engine.trainer import memory_format
from ssl_lightning.networks.features import check_input_size
from ssl_lightning.networks.own_statistics import OwnStatistics
from ssl_lightning.tasks._contract import TaskContractError, UnknownImagesError
from ssl_lightning.tasks.base import PretextTask

PROBED = {"state_dict": dict}  # entries that a checkpoint needs to be probed; below, to be resumed
RESUMED = {
    "state_dict": dict, "epoch": int, "global_step": int, "pytorch-lightning_version": str, "loops": dict,
    "callbacks": dict, "optimizer_states": list, "lr_schedulers": list,
}  # fmt: skip
COMPILED_FROM = 20_000  # batches; NIN gains its compile time back in 16,000 on an H100 (docs/speed.md)
OWN = ("Throughput", "DivergenceGuard", "Metrics")  # callbacks of every run, whose state a checkpoint needs


class StartingPoint:
    """Initial weights from `init_from` or a checkpoint, read before the data set is loaded.

    Args:
        cfg: Resolved.
        resumed_from: Checkpoint that the run resumes from; Lightning restores it.
        checkpoint: Checkpoint to probe; ignored for a task without training.
        untrained: Existing records of the untrained backbone.

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
        # a checkpoint replaces the first weights at once, unless they must be probed first
        probed_first = self.resumes and cfg.probe_untrained and not untrained
        self.replaced = self.path is not None and not probed_first
        self.weights = None if cfg.init_from is None else read_state(Path(cfg.init_from))

    def build(self, data: PairedDataModule) -> tuple[PretextTask, str]:
        """Build the task with these weights; see `build_task`.

        Raises:
            ValueError: The parts do not fit each other, or the checkpoint does not fit the task.
        """
        cfg = self.cfg
        published = bool(cfg.backbone.get("pretrained"))
        if published and self.replaced:  # do not download weights that would be replaced
            cfg = cast(DictConfig, OmegaConf.merge(cfg, {"backbone": {"pretrained": False}}))
        task, loaded = build_task(cfg, data, self.weights)
        if self.content is None:
            return task, loaded
        state, self.content = self.content["state_dict"], None
        if wrong := mismatches(task.state_dict(), state):
            raise ValueError(f"{self.path} is of another task or backbone: {'; '.join(wrong)}")
        if self.resumes:
            return task, loaded or "published" * published
        task.load_state_dict(state)
        return task, str(self.path)


def build_task(
    cfg: DictConfig, data: PairedDataModule, weights: Mapping[str, Tensor] | None = None
) -> tuple[PretextTask, str]:
    """Build the backbone and its task, with initial weights from `cfg.seed` or `cfg.init_from`.

    Args:
        cfg: Resolved.
        data: Set up.
        weights: Content of `cfg.init_from`, if already read.

    Returns:
        The task, and the origin of the backbone's weights in words, "" for the seed.

    Raises:
        ValueError: The images are smaller than the stride of the backbone, or other parts do not fit.
    """
    torch.manual_seed(stream_seed(cfg.seed, "weights"))
    task_class = cast(type[PretextTask], get_class(cfg.task._target_))
    backbone: nn.Module = instantiate(cfg.backbone, in_channels=task_class.backbone_channels(data.spec))
    check_input_size(backbone, data.spec.image_size)
    # partial, since instantiate would copy modules given as keywords into a config
    make_task: partial[PretextTask] = instantiate(cfg.task, _partial_=True)
    given = {
        "optimizer": instantiate(cfg.optimizer),
        "scheduler": instantiate(cfg.scheduler),
        "seed": cfg.seed,
        "channels_last": cfg.channels_last,
    }
    unbuilt = TaskContractError(
        f"{task_class.__name__} does not know its images after its constructor, which must call "
        "self.build(spec); build() must first call super().build(spec)"
    )
    try:
        task = make_task(backbone, data.spec, **given)
    except UnknownImagesError as error:
        raise unbuilt from error
    if not task.is_built:
        raise unbuilt
    loaded = "published" if cfg.backbone.get("pretrained") else ""
    if cfg.init_from is not None:
        loaded = load_weights(task.backbone, cfg.init_from, prefix_map=cfg.prefix_map, state=weights)
        for part in task.modules():
            if isinstance(part, OwnStatistics):
                part.copy_from(task.backbone)
    return task.to(memory_format=memory_format(cfg.channels_last)), loaded


def check_complete(content: Mapping[str, Any], path: str, needed: Mapping[str, type]) -> None:
    """Check that a checkpoint holds the entries that a run needs.

    Raises:
        ValueError: An entry is missing or of another type.
    """
    if "callbacks" in needed and isinstance(content.get("callbacks"), dict):
        states = {f"the state of {name}": content["callbacks"].get(name) or None for name in OWN}
        content, needed = {**content, **states}, {**needed, **dict.fromkeys(states, dict)}
    for key, kind in needed.items():
        if type(content.get(key)) is not kind and not (kind is dict and isinstance(content.get(key), dict)):
            found = f"is of type {type(content[key]).__name__}" if key in content else "is missing"
            raise ValueError(
                f"{path} is not a checkpoint of a run: {key} {found}; give a file of weights as init_from= "
                f"or {command_line('evaluate')} weights="
            )


def compile_networks(task: PretextTask) -> None:
    """Compile the networks of a task in place; modules and weights keep their names."""
    for network in task.networks():
        network.compile(dynamic=False)


def use_compiler(wanted: bool | str, *, device: torch.device, sharded: bool, batches: int) -> bool:
    """Whether to compile the networks for training steps.

    Args:
        wanted: `compile` of the config: true, false, or auto to compile a long run on a GPU.
        device: Device of the training.
        sharded: Whether the weights are sharded.
        batches: Planned batches of the full run, so that a resumed run decides as the interrupted one.

    Raises:
        ValueError: `wanted` is true, but the networks cannot be compiled.
    """
    if not wanted:
        return False
    against = "trainer.strategy=fsdp does not support it" if sharded else ""
    if wanted == "auto":
        if device.type != "cuda":
            against = f"it does not pay on {device.type}"
        elif batches < COMPILED_FROM:
            against = f"it pays from {COMPILED_FROM:,} batches, and this run has {batches:,}"
    against = against or compiler_error(device)
    if against and wanted != "auto":
        raise ValueError(f"compile is true, but {against}; leave it false")
    if wanted == "auto":
        tell(f"compile=auto is off: {against}" if against else f"compile=auto is on for {batches:,} batches")
    return not against


def compiler_error(device: torch.device) -> str:
    """Compile a trivial function for a device; return the reason if that fails, else an empty string."""
    try:
        torch.compile(torch.neg)(torch.ones(8, device=device))
    except Exception as error:  # a missing C++ compiler or Triton raises various classes
        return f"torch.compile does not work here ({first_line(error)})"
    return ""
