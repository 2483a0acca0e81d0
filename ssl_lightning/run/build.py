"""A task from its config, its weights from a checkpoint, and the shapes that its trunk makes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import cast

import torch
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig
from torch import Tensor, nn

from ssl_lightning.artifacts.weights import load_weights
from ssl_lightning.core.seeding import stream_seed
from ssl_lightning.data.base import PairedDataModule
from ssl_lightning.engine.trainer import memory_format
from ssl_lightning.features.encode import evaluating, stage_maps
from ssl_lightning.networks.features import check_input_size
from ssl_lightning.tasks.base import PretextTask


def build_task(
    cfg: DictConfig, data: PairedDataModule, weights: Mapping[str, Tensor] | None = None
) -> tuple[PretextTask, str]:
    """Build the trunk and the task around it, with the initial weights of `cfg.seed` or of `cfg.init_from`.

    Args:
        cfg: Resolved.
        data: Set up.
        weights: What is in `cfg.init_from`, where that was read before.

    Returns:
        The task, and a line that says where the trunk's weights come from, "" for the seed.

    Raises:
        ValueError: The images are smaller than the stride of the trunk, or other parts do not fit.
    """
    torch.manual_seed(stream_seed(cfg.seed, "weights"))
    task_class = cast(type[PretextTask], get_class(cfg.task._target_))
    backbone: nn.Module = instantiate(cfg.backbone, in_channels=task_class.trunk_channels(data.spec))
    check_input_size(backbone, data.spec.image_size)
    # partial: passed as keywords of instantiate, modules would be copied into a config
    make_task: partial[PretextTask] = instantiate(cfg.task, _partial_=True)
    task = make_task(
        backbone,
        data.spec,
        optimizer=instantiate(cfg.optimizer),
        scheduler=instantiate(cfg.scheduler),
        seed=cfg.seed,
        channels_last=cfg.channels_last,
    )
    loaded = "published" if cfg.backbone.get("pretrained") else ""
    if cfg.init_from is not None:
        loaded = load_weights(task.backbone, cfg.init_from, prefix_map=cfg.prefix_map, state=weights)
    return task.to(memory_format=memory_format(cfg.channels_last)), loaded


def compile_networks(task: PretextTask) -> None:
    """Let torch.compile have the networks of a task, in place: modules and weights keep their names."""
    for network in task.children():
        network.compile(dynamic=False)


def check_compiler(device: torch.device) -> None:
    """Compile a trifle.

    Raises:
        ValueError: There is no compiler for this device.
    """
    try:
        torch.compile(torch.neg)(torch.ones(8, device=device))
    except Exception as error:  # what is missing has many kinds of errors: a C++ compiler, Triton
        why = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"compile is true, but torch.compile does not work here ({why}); leave it false"
        ) from error


def map_shapes(trunk: nn.Module, fed: Tensor) -> dict[str, tuple[int, int, int]]:
    """Shape `(C, H, W)` of each stage map, found by encoding one image; leaves no trace."""
    try:
        with evaluating(trunk), torch.no_grad():
            maps = stage_maps(trunk, fed)
    except (AssertionError, RuntimeError) as error:  # transformers of timm take one size only
        size = "x".join(map(str, fed.shape[-2:]))
        raise ValueError(f"the trunk takes no images of {size} px: {error}") from error
    return {f"stage{depth}": tuple(each.shape[1:]) for depth, each in enumerate(maps, 1)}  # type: ignore[misc]
