"""Draw a task's outputs on real images after every epoch, and a strip over epochs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from PIL import Image
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor

from ssl_lightning.artifacts.run_folder import PANEL, PANELS, STRIP
from ssl_lightning.callbacks._loaders import paired_data, watched_sample
from ssl_lightning.core.atomic_files import atomic_file, write_file
from ssl_lightning.engine.fsdp import unsharded_task
from ssl_lightning.features.encode import evaluating
from ssl_lightning.tasks._contract import checked
from ssl_lightning.tasks._pixels import to_float
from ssl_lightning.tasks.base import Panel

COLOURS = {True: "#1a7f37", False: "#cf222e", None: "#57606a"}
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # of Pillow, for files of C channels
STRIP_EPOCHS = 12  # columns of a strip at most


class PanelPicture(Callback):
    """Draw the task's panel for a fixed set of images into `panel.png` and TensorBoard.

    With `keep`, each epoch also leaves `panels/epoch_0001.png` and so on. A panel with a watched column
    leaves the bare pixels of that column too, `panels/watched_0001.png`. `strip.png` is drawn from these
    files, so that a resumed run includes earlier epochs. It shows the columns before the watched one, the
    watched column in up to 12 epochs, and the columns after it.

    Args:
        folder: The run folder; None for the Trainer's `default_root_dir`.
        images: Number of images, one row each.
        keep: Whether to keep the panel of every epoch.
    """

    def __init__(self, folder: str | None = None, images: int = 6, keep: bool = True) -> None:
        if images < 1:
            raise ValueError(f"callbacks.panel.images is {images}; a panel needs at least 1")
        self.folder = None if folder is None else Path(folder)
        self.count, self.keep = images, keep
        self._stock = torch.empty(0)  # images, without a data module of this package

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if paired_data(trainer) is None and trainer.is_global_zero:
            self._stock = watched_sample(trainer, self.count).images

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        task = unsharded_task(trainer, pl_module)
        if not trainer.is_global_zero:
            return
        data = paired_data(trainer)
        images = self._stock
        if data is not None:
            images = data.train_sample(min(self.count, data.pretrain_images))
        images = to_float(images.to(pl_module.device))
        with evaluating(task), torch.no_grad(), trainer.precision_plugin.forward_context():
            panel = checked(task, "panel", task.panel(images), Panel)
        epoch = trainer.current_epoch + 1
        pictures = {"panel": draw_panel(panel)}
        folder = self.folder or Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save(pictures["panel"], folder / PANEL)
        if self.keep:
            kept = folder / PANELS
            kept.mkdir(exist_ok=True)
            write_file(kept / f"epoch_{epoch:04d}.png", (folder / PANEL).read_bytes())
            if panel.watched is not None:
                write_column(panel.images[:, panel.watched], kept / f"watched_{epoch:04d}.png")
                pictures["strip"] = draw_panel(strip(panel, kept, epoch))
                save(pictures["strip"], folder / STRIP)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                for name, figure in pictures.items():
                    logger.experiment.add_figure(name, figure, trainer.current_epoch)


def strip(panel: Panel, kept: Path, epoch: int) -> Panel:
    """Put the watched column of up to 12 epochs side by side, between the other columns of the panel.

    Args:
        panel: Panel of the newest epoch, with a watched column.
        kept: Folder of the files of `write_column`.
        epoch: Newest epoch; files of later epochs, left by a run before its resume, are ignored.
    """
    assert panel.watched is not None
    shown = panel.images.detach().float().cpu()
    epochs = sorted(number for path in kept.glob("watched_*.png") if (number := _epoch(path)) <= epoch)
    columns = {number: read_column(kept / f"watched_{number:04d}.png", shown.shape) for number in epochs}
    fitting = {number: column for number, column in columns.items() if column is not None}
    chosen = thin_epochs(list(fitting), STRIP_EPOCHS)
    left, right = shown[:, : panel.watched], shown[:, panel.watched + 1 :]
    pixels = torch.cat([left, torch.stack([fitting[number] for number in chosen], 1), right], 1)
    titles = [f"epoch {number}" for number in chosen]
    return Panel(pixels, panel.columns[: panel.watched] + titles + panel.columns[panel.watched + 1 :])


def thin_epochs(items: list[int], most: int) -> list[int]:
    """Return up to `most` evenly spaced items, including the first and the last.

    >>> thin_epochs([1, 2, 3, 4, 5, 6, 7], 3), thin_epochs([1, 2], 3)
    ([1, 4, 7], [1, 2])
    """
    if len(items) <= most:
        return items
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def write_column(images: Tensor, path: Path) -> None:
    """Write images `(rows, C, H, W)`, floats in [0, 1], as one column in a PNG."""
    pixels = images.detach().float().clamp(0, 1).mul(255).round().to(torch.uint8).cpu()
    column = pixels.movedim(1, -1).flatten(0, 1).numpy()  # (rows * H, W, C)
    with atomic_file(path) as temporary:
        Image.fromarray(column[..., 0] if column.shape[-1] == 1 else column).save(temporary, format="png")


def read_column(path: Path, shape: torch.Size) -> Tensor | None:
    """Read a column that `write_column` wrote for a panel of `shape` (rows, columns, C, H, W).

    Returns:
        Images `(rows, C, H, W)`, floats in [0, 1], or None for a torn file or other shapes.
    """
    rows, _, channels, height, width = shape
    try:
        with Image.open(path) as image:
            pixels = torch.from_numpy(np.array(image.convert(MODES[channels])))
    except OSError:
        return None
    if pixels.shape[:2] != (rows * height, width):
        return None
    return to_float(pixels.view(rows, height, width, channels).movedim(-1, 1))


def save(figure: Figure, path: Path) -> None:
    """Write a figure atomically."""
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def draw_panel(panel: Panel) -> Figure:
    """Draw a panel as a matplotlib figure: images in rows, titles above columns, captions below images."""
    rows, columns = panel.images.shape[:2]
    height = 1.75 if panel.captions else 1.55
    figure = Figure(figsize=(1.5 * columns + 0.3, height * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    pixels = panel.images.detach().float().clamp(0, 1).movedim(2, -1).cpu().numpy()
    for row in range(rows):
        for column in range(columns):
            axis = axes[row, column]
            shown = pixels[row, column]
            axis.imshow(
                shown[..., 0] if shown.shape[-1] == 1 else shown[..., :3], cmap="gray", vmin=0, vmax=1
            )
            axis.set_xticks([])
            axis.set_yticks([])
            right = panel.right[row][column] if panel.right else None
            if panel.captions:
                axis.set_xlabel(panel.captions[row][column], color=COLOURS[right], fontsize=8)
            axis.spines[:].set(color=COLOURS[right], linewidth=2 if panel.right else 0.5)
            if row == 0:
                axis.set_title(panel.columns[column], fontsize=9)
    return figure


def _epoch(path: Path) -> int:
    """Return the epoch in the name of a kept file, or a number beyond every epoch."""
    number = path.stem.rpartition("_")[2]
    return int(number) if number.isdigit() else 1 << 62
