"""Checks of the parts of a run against each other, before any work."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import Callback
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn

from ssl_lightning.callbacks.checkpoint import Checkpoint
from ssl_lightning.callbacks.panel import PanelPicture
from ssl_lightning.config.identity import leaves
from ssl_lightning.config.plugins import conf_dirs
from ssl_lightning.core.errors import first_line
from ssl_lightning.core.messages import tell
from ssl_lightning.data.base import PairedDataModule
from ssl_lightning.features.encode import evaluating, map_shapes
from ssl_lightning.probes.base import BaseProbe
from ssl_lightning.tasks._contract import TaskContractError, check_scores, checked
from ssl_lightning.tasks._pixels import to_float
from ssl_lightning.tasks.base import Panel, PretextTask

WRITTEN = ("dirpath", "folder", "save_dir")  # keys of callbacks and loggers that name a folder
KNOWN = ("ssl_lightning.", "pytorch_lightning.", "lightning.")  # modules of callbacks whose figures are known


def build_all(cfg: DictConfig, group: str, fallback: str) -> dict[str, Any]:
    """Build the entries of a group of the config.

    Args:
        cfg: Resolved.
        group: Such as "logger".
        fallback: The override that leaves out what cannot be built.

    Returns:
        The objects by name.

    Raises:
        ValueError: A package is not installed.
    """
    try:
        return dict(instantiate(cfg[group]))
    except InstantiationException as error:
        if not isinstance(error.__cause__, ImportError):
            raise
        why = first_line(error.__cause__)
        raise ValueError(
            f"{group} needs a package that is not installed here ({why}); install it, or use {fallback}"
        ) from error


def check_places(cfg: DictConfig) -> None:
    """Check that callbacks and loggers may write where they are told to.

    Raises:
        ValueError: A folder cannot be made or written to.
    """
    for group in ("callbacks", "logger"):
        for key, value in leaves({group: OmegaConf.to_container(cfg[group])}).items():
            if key.rpartition(".")[2] not in WRITTEN or not isinstance(value, str):
                continue
            folder = Path(value).expanduser().absolute()
            there = next(path for path in (folder, *folder.parents) if path.exists())
            if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
                raise ValueError(
                    f"{key} is {value}, and {there} is not a folder that this process may write to; leave "
                    f"{key} out to write to the run folder"
                )


@dataclass
class TriedStep:
    """One step of a task on random images.

    Args:
        sizes: Height and width of each input of the backbone.
        scores: Names of the scores; empty if the step failed.
        refusal: Error of the backbone, if it takes no such input.
    """

    sizes: list[tuple[int, int]] = field(default_factory=list)
    scores: list[str] = field(default_factory=list)
    refusal: Exception | None = None


def try_step(task: PretextTask) -> TriedStep:
    """Score two random images as validation does, with gradients; changes no state and no random stream.

    A message says so if the same stream gives another loss. A step that fails outside the backbone is left to
    the training.

    Raises:
        TaskContractError: The task has no step, or its step returns no scores.
    """
    tried, done = TriedStep(), 0

    def enter(_backbone: nn.Module, inputs: Any) -> None:
        tried.sizes.append(tuple(inputs[0].shape[-2:]))

    def leave(_backbone: nn.Module, _inputs: Any, _maps: Any) -> None:
        nonlocal done
        done += 1

    handles = [
        task.backbone.register_forward_pre_hook(enter),
        task.backbone.register_forward_hook(leave),
    ]
    try:
        with isolate_rng(include_cuda=False), evaluating(task), torch.enable_grad():
            images = torch.randint(256, (2, *_shape(task)), dtype=torch.uint8)
            labels = torch.zeros(len(images), dtype=torch.int64)
            scores, again = (
                task.step(task.receive(images), labels, torch.Generator().manual_seed(0)) for _ in range(2)
            )
            check_scores(task, scores)
            tried.scores = list(scores)
            if not torch.allclose(scores["loss"], again["loss"], rtol=1e-3, equal_nan=True):
                tell(
                    f"{type(task).__name__}.step gives two losses for one stream, so that a resumed run may "
                    "differ; draw all random numbers from the argument stream"
                )
    except TaskContractError:
        raise
    except Exception as error:  # a task of a plugin may raise anything
        tried.refusal = error if done < len(tried.sizes) else None
    finally:
        for handle in handles:
            handle.remove()
    return tried


def try_panel(task: PretextTask, callbacks: Mapping[str, Callback]) -> None:
    """Make the panel of random images if a callback draws it; changes no state and no random stream.

    Args:
        task: With its initial weights, on the CPU.
        callbacks: The callbacks by name.

    Raises:
        TaskContractError: The task has no panel or a wrong one; the message says how to leave it out.
    """
    drawn = [callback.count for callback in callbacks.values() if isinstance(callback, PanelPicture)]
    if not drawn:
        return
    try:
        with isolate_rng(include_cuda=False), evaluating(task), torch.no_grad():
            images = to_float(torch.randint(256, (min(2, *drawn), *_shape(task)), dtype=torch.uint8))
            checked(task, "panel", task.panel(images), Panel)
    except TaskContractError as error:
        why = str(error)
    except ValueError as error:
        why = f"{type(task).__name__}.panel: {error}"
    else:
        return
    options = {path.stem for conf in conf_dirs() for path in conf.glob("callbacks/*.yaml")}
    others = [n for n, each in callbacks.items() if n in options and not isinstance(each, PanelPicture)]
    raise TaskContractError(f"{why}; callbacks=[{','.join(others)}] leaves the panel out")


def check_backbone(cfg: DictConfig, task: PretextTask, feed: Callable[[Tensor], Tensor]) -> list[str]:
    """Check that the backbone takes the images of the training and of the probes.

    Args:
        cfg: Resolved.
        task: With its initial weights, on the CPU.
        feed: Maps plain images, floats in [0, 1], to the input of the backbone in probes.

    Returns:
        Names of the scores of validation; empty if they are not known.

    Raises:
        ValueError: The backbone takes another size; the message names an option of it that helps.
    """
    tried = try_step(task) if task.needs_training else TriedStep()
    plain = feed(torch.zeros(1, *_shape(task)))
    refusal = tried.refusal
    try:
        map_shapes(task.backbone, plain)
    except ValueError as error:
        refusal = error
    if refusal is None:
        return tried.scores
    height, width = plain.shape[-2:]
    sizes = sorted({*tried.sizes, (height, width)})
    listed = " and ".join("x".join(map(str, size)) for size in sizes)
    why = str(refusal).partition("px: ")[2] or str(refusal)
    name = cfg.backbone.get("model_name") or type(task.backbone).__name__
    advice = _helping_option(cfg, plain.shape[-3], sizes) or "choose another backbone or data.image_size"
    raise ValueError(
        f"the backbone {name} does not take images of {listed} px, as this run feeds it "
        f"({why.strip().partition(chr(10))[0].rstrip('.')}); {advice}"
    ) from refusal


def check_monitors(callbacks: Iterable[Callback], scores: Collection[str], *, validates: bool) -> None:
    """Check that callbacks monitor figures of this run.

    A callback of unknown origin may log figures of its own, so nothing is refused beside it.

    Args:
        callbacks: All callbacks of the run.
        scores: Names of the scores of validation; empty if they are not known.
        validates: Whether there is a validation.

    Raises:
        ValueError: The run has no such figure; the message lists its figures.
    """
    callbacks = list(callbacks)
    if not scores or any(not type(each).__module__.startswith(KNOWN) for each in callbacks):
        return
    logged = {f"val/{name}" for name in scores} if validates else set()
    for callback in callbacks:
        name = getattr(callback, "monitor", None)
        if not isinstance(name, str) or name in logged or name.startswith("online/"):
            continue
        if not validates and isinstance(callback, Checkpoint):
            continue  # without a validation it keeps no best.ckpt
        raise ValueError(
            f"{type(callback).__name__} monitors {name}, which this run does not log; "
            f"it logs {', '.join(sorted(logged)) or 'nothing, as it has no validation'}"
        )


def check_objective(
    objective: str | None, scores: Collection[str], probes: Mapping[str, BaseProbe], *, holds_out: bool
) -> None:
    """Check, as far as it is known before the run, that a run gives the figure that a sweeper optimises.

    Args:
        objective: See `artifacts.results.objective_value`.
        scores: Names of the scores of validation; empty if they are not known.
        probes: The probes that run, by name.
        holds_out: Whether there are held-out images.

    Raises:
        ValueError: The run does not give it.
    """
    if objective is None:
        return
    kind, _, rest = objective.partition("/")
    probe = probes.get(rest.partition("/")[0])
    if kind == "pretext" and (not scores or (holds_out and rest in {f"val/{name}" for name in scores})):
        return
    if kind == "probe" and probe is not None and (holds_out or "none" in probe.targets):
        return
    known = [f"pretext/val/{name}" for name in scores if holds_out] + [f"probe/{name}/..." for name in probes]
    raise ValueError(
        f"objective is {objective!r}; this run gives {', '.join(known) or 'no figures'}"
        + ("" if holds_out else ", and holds out no images (data.heldout is 0)")
    )


def check_validation(data: PairedDataModule, processes: int, limit: float | int | None) -> None:
    """Check that every process gets a batch of the held-out images, if there are any.

    Args:
        data: Set up.
        processes: Processes of the run.
        limit: `trainer.limit_val_batches`.

    Raises:
        ValueError: There are too few images for the processes or for the limit.
    """
    if not data.holds_out:
        return
    loader = data.val_dataloader()
    images, batches = len(loader.indices), len(loader)
    if images < processes:
        raise ValueError(
            f"the data hold out {images} of their images, and the run has {processes} processes; use "
            f"data.heldout={processes} or more, or data.heldout=0 for no validation"
        )
    if isinstance(limit, float) and int(batches * limit) < 1:
        raise ValueError(
            f"trainer.limit_val_batches is {limit}, which leaves none of {batches} batches; "
            "use trainer.limit_val_batches=1"
        )


def _helping_option(cfg: DictConfig, channels: int, sizes: list[tuple[int, int]]) -> str:
    """Return overrides with which the backbone takes images of all these sizes, or "" if none is known."""
    same = {"pretrained": False} if "pretrained" in cfg.backbone else {}
    options: list[dict[str, Any]] = [
        {"dynamic_img_size": True},
        {"dynamic_img_size": True, "dynamic_img_pad": True},
    ]
    if len(sizes) == 1:
        options = [{"img_size": sizes[0][0]}, {"image_size": sizes[0][0]}, *options]
    for option in options:
        with (
            contextlib.suppress(Exception),
            isolate_rng(include_cuda=False),
        ):  # backbones raise nearly all kinds
            backbone = instantiate(cfg.backbone, in_channels=channels, **same, **option)
            for size in sizes:
                map_shapes(backbone, torch.zeros(1, channels, *size))
            return "use " + " ".join(
                f"{'' if key in cfg.backbone else '+'}backbone.{key}={str(value).lower()}"
                for key, value in option.items()
                if cfg.backbone.get(key) != value
            )
    return ""


def _shape(task: PretextTask) -> tuple[int, int, int]:
    """Return the shape `(C, H, W)` of one image."""
    return task.spec.channels, task.spec.image_size, task.spec.image_size
