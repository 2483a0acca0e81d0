"""Probe a pretext task or any network in one call."""

from __future__ import annotations

import copy
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from hydra.utils import instantiate
from omegaconf import OmegaConf
from rich.console import Console
from torch import nn

from ssl_lightning.config.paths import conf_dir
from ssl_lightning.core.image_spec import ImageSpec
from ssl_lightning.core.progress import shown_by
from ssl_lightning.data._pairing import SPLITS
from ssl_lightning.data.base import PairedDataModule
from ssl_lightning.engine.trainer import make_trainer
from ssl_lightning.features.encode import evaluating
from ssl_lightning.features.prepare import Preparation
from ssl_lightning.probes._runner import check_probes, run_probes
from ssl_lightning.probes.base import BaseProbe
from ssl_lightning.report.probe_table import ProbeTable
from ssl_lightning.run.bare_network import bare_network, own_transform
from ssl_lightning.run.labelled_data import labelled_data
from ssl_lightning.tasks.base import PretextTask

log = logging.getLogger(__name__)


def probe(
    model: nn.Module,
    train: Any,
    test: Any = None,
    *,
    heldout: int | None = None,
    probes: Sequence[str | BaseProbe] | Mapping[str, BaseProbe] = ("linear", "knn"),
    image_size: int | None = None,
    channels: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    batch_norm: str | None = None,
    batch_size: int = 256,
    device: str | torch.device = "auto",
    seed: int = 0,
    folder: str | Path | None = None,
    progress: bool = True,
) -> ProbeTable:
    """Evaluate the frozen features of every stage of a network on labelled images, as our runs do.

    Held-out training images select the stage and every setting of a probe. The test images are only reported.
    The mode and device of the model and the random state of torch stay as they were.

    Args:
        model: A pretext task, all of whose branches are probed, or any network that `as_backbone` takes. Of a
            task that was not trained yet, a copy is built for these images.
        train: Labelled training images: a pair of images and labels (arrays or tensors), a `Dataset` of such
            pairs, or a folder with one folder per class (see `ImageData`). Or a data module of this package,
            with no `test`.
        test: Labelled test images, like `train`.
        heldout: Number of training images to hold out; None holds out a tenth.
        probes: Names of the files in `conf/probe`, or probes, or probes by name.
        image_size: Height and width to which images are resized; None for the size of the task, if it is one,
            else of the images.
        channels: 1 for grey, 3 for RGB, 4 for four channels as they are; images are converted. None as for
            `image_size`.
        mean: Per-channel mean in [0, 1] for a network that is not a task. None takes it from timm's
            `pretrained_cfg`, or measures it on the training images.
        std: Per-channel standard deviation, like `mean`.
        batch_norm: "trained", "recalibrated", or None for the choice of the task; see `Preparation`.
        batch_size: Images of a forward pass; a data module sets it itself.
        device: Such as "cpu" or "cuda"; "auto" takes a GPU if there is one.
        seed: Seed of the probes' random streams.
        folder: Folder for the pictures and files of some probes; None discards them.
        progress: Whether a terminal or notebook shows the current step, and how far it is.

    Returns:
        The results, a table when printed; see `ProbeTable`.

    Raises:
        ValueError: An argument is out of range, or the parts do not fit each other.
        RuntimeError: There are several processes.

    Example:
        >>> import torch, torchvision
        >>> from ssl_lightning.data.fake import Fake
        >>> data = Fake(num_train=96, heldout=32, num_test=32)
        >>> table = probe(torchvision.models.resnet18(), data, probes=["knn"], device="cpu", progress=False)
        >>> sorted({record.stage for record in table.records})
        ['stage1', 'stage2', 'stage3', 'stage4']
    """
    check_alone()
    preparation = Preparation(batch_norm)
    if not isinstance(train, pl.LightningDataModule):
        image_size = trained_with(model, "image_size") if image_size is None else image_size
        channels = trained_with(model, "channels") if channels is None else channels
    data = labelled_data(
        train,
        test,
        heldout=heldout,
        image_size=image_size,
        channels=channels,
        batch_size=batch_size,
        seed=seed,
    )
    if isinstance(model, PretextTask) and not model.is_built:
        model = built(model, data.spec)
    task = probed_task(model, data.spec, mean, std)
    chosen = named_probes(probes, data)
    normalisation = getattr(task, "normalisation", f"of {type(task).__name__}")
    log.info("normalisation: %s", normalisation)
    place = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    with borrowed(task, place), showing(progress) as announce, kept_in(folder) as files:
        feed = preparation.feed(task)
        inputs = feed(data.train_sample(1).to(place).float().div_(255))
        check_probes(chosen, task.branches(), inputs, data.label_counts)
        backbones = preparation.backbones(task, lambda n: data.train_sample(min(n, data.pretrain_images)))
        records, seconds = run_probes(
            backbones,
            feed,
            chosen,
            {split: data.downstream(split) for split in SPLITS if data.label_counts.get(split)},
            class_names=data.spec.class_names or (),
            folder=files,
            data=data,
            make_trainer=partial(make_trainer, accelerator=place.type, devices=1, precision="32-true"),
            seed=seed,
            device=place,
            protocol=preparation.protocol(task, data.pretrain_images) | {"normalisation": normalisation},
            announce=announce,
        )
    return ProbeTable(records, [images_line(data), f"normalisation: {normalisation}", times_line(seconds)])


def check_alone() -> None:
    """Raise RuntimeError in one of several processes."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        raise RuntimeError(
            f"probe() runs in one process, and there are {dist.get_world_size()}; call it in a script of its "
            "own, on the task from load_from_checkpoint"
        )


def trained_with(model: nn.Module, key: str) -> int | None:
    """Return image_size or channels of the images that a task or a loaded backbone was trained with."""
    transform = own_transform(model)
    if transform and transform.colour == "L" and key == "channels":
        return 3  # lightness comes from RGB
    if isinstance(model, PretextTask) and not model.is_built:
        return None
    value = getattr(transform or getattr(model, "spec", None), key, None)
    return value if isinstance(value, int) else None


def built(task: PretextTask, spec: ImageSpec) -> PretextTask:
    """Return a copy of a task, built for such images; the random state of torch stays as it was."""
    task = copy.deepcopy(task)
    with torch.random.fork_rng(devices=[]):
        task.build(spec)
    task.check_channels()
    return task


def probed_task(
    model: nn.Module, spec: ImageSpec, mean: Sequence[float] | None, std: Sequence[float] | None
) -> Any:
    """Return a task as it is, and any other network as one; see `probe` for the arguments.

    Raises:
        ValueError: The model is no network, or does not fit the images.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"the model is {type(model).__name__}; allowed is a task or a torch.nn.Module")
    if not all(hasattr(model, name) for name in ("branches", "probe_input", "recalibrate")):
        return bare_network(model, spec, mean, std)
    name = type(model).__name__
    if mean is not None or std is not None:
        raise ValueError(f"mean and std are given, and {name} normalises images itself; leave them out")
    of_task = getattr(model, "spec", None)
    if of_task is not None and of_task.channels != spec.channels:
        raise ValueError(
            f"{name} was trained on images of {of_task.channels} channels, and the labelled images have "
            f"{spec.channels}; give images of {of_task.channels}"
        )
    return model


def named_probes(
    probes: Sequence[str | BaseProbe] | Mapping[str, BaseProbe], data: PairedDataModule
) -> dict[str, BaseProbe]:
    """Return the probes by name; a probe that is given by its name has the values of `conf/probe`.

    Raises:
        ValueError: A name is unknown or occurs twice, or a probe needs another kind of labels.
    """
    if isinstance(probes, str | BaseProbe):
        probes = [probes]
    if not isinstance(probes, Mapping):
        named = [(each, configured(each)) if isinstance(each, str) else _named(each) for each in probes]
        if twice := [name for place, (name, _) in enumerate(named) if name in dict(named[:place])]:
            raise ValueError(
                f"probes has {twice[0]} twice; give the probes names: probes={{'a': ..., 'b': ...}}"
            )
        probes = dict(named)
    if not probes:
        raise ValueError(f"probes is empty; allowed are {', '.join(probe_names())}")
    for name, each in probes.items():
        if not {data.targets, "none"} & set(each.targets):
            raise ValueError(
                f"probe {name} needs labels of the kind {' or '.join(each.targets)}, and the images have "
                f"{data.targets}"
            )
    return dict(probes)


def configured(name: str) -> BaseProbe:
    """Make the probe of a file in `conf/probe`.

    Raises:
        ValueError: There is no such file; the message lists the names.
    """
    if name not in probe_names():
        raise ValueError(f"probes has {name!r}; allowed are {', '.join(probe_names())}, and probe objects")
    return cast(BaseProbe, instantiate(OmegaConf.load(conf_dir() / "probe" / f"{name}.yaml")))


def probe_names() -> list[str]:
    """Return the names of the files in `conf/probe`."""
    return sorted(path.stem for path in (conf_dir() / "probe").glob("*.yaml"))


@contextmanager
def borrowed(task: Any, device: torch.device) -> Iterator[None]:
    """Hold a task on a device in eval mode; then restore its device and modes, and torch's random state."""
    home = task.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []), evaluating(task):
        try:
            task.to(device)
            yield
        finally:
            task.to(home)


@contextmanager
def showing(progress: bool) -> Iterator[Callable[[str], None]]:
    """Yield a function that shows the current step in a terminal or notebook, and logs it anywhere else."""
    console = Console(stderr=True)
    if not progress or not (console.is_terminal or console.is_jupyter):
        yield log.info
        return
    with console.status("probe") as status, shown_by(status.update):
        yield status.update


@contextmanager
def kept_in(folder: str | Path | None) -> Iterator[Path]:
    """Yield the folder, made if needed, or a temporary one."""
    if folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            yield Path(temporary)
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    yield Path(folder)


def images_line(data: PairedDataModule) -> str:
    """Name the numbers of the images of each split."""
    counts = data.label_counts
    return f"images: {counts['train']:,} train, {counts['heldout']:,} held out, {counts['test']:,} test"


def times_line(seconds: Mapping[str, float]) -> str:
    """Name the seconds of each step, as at the end of a run."""
    ordered = sorted(seconds.items(), key=lambda item: item[0] != "encode_s")
    return "time: " + ", ".join(f"{name.removesuffix('_s')} {s:.1f} s" for name, s in ordered)


def _named(given: BaseProbe) -> tuple[str, BaseProbe]:
    """Name a probe object after its module."""
    if not isinstance(given, BaseProbe):
        raise ValueError(
            f"probes has {given!r}; allowed are names ({', '.join(probe_names())}) and probe objects"
        )
    return type(given).__module__.rpartition(".")[2], given
