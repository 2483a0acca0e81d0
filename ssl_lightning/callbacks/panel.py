"""A picture of what the task does to real images, drawn anew after every epoch."""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import TensorBoardLogger

from ssl_lightning.tasks.base import Panel, to_float

COLOURS = {True: "#1a7f37", False: "#cf222e", None: "#57606a"}


class PanelPicture(Callback):
    """Draw the task's panel for a fixed set of images into `panel.png` and TensorBoard.

    Args:
        folder: The run folder.
        images: Number of images, one row each.
    """

    def __init__(self, folder: str, images: int = 6) -> None:
        if images < 1:
            raise ValueError(f"images is {images}; a panel needs at least 1")
        self.folder = Path(folder)
        self.count = images

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        images = to_float(trainer.datamodule.train_sample(self.count).to(pl_module.device))  # type: ignore[attr-defined]
        pl_module.eval()
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            panel = pl_module.panel(images)  # type: ignore[operator]
        pl_module.train()
        figure = draw(panel)
        figure.savefig(self.folder / "panel.png", dpi=110)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_figure("panel", figure, trainer.current_epoch)


def draw(panel: Panel) -> Figure:
    """Draw a panel as a matplotlib figure: pictures in rows, titles above, captions below each."""
    rows, columns = panel.images.shape[:2]
    figure = Figure(figsize=(1.5 * columns + 0.3, 1.75 * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    pixels = panel.images.detach().float().clamp(0, 1).movedim(2, -1).cpu().numpy()
    for row in range(rows):
        for column in range(columns):
            axis = axes[row, column]
            shown = pixels[row, column]
            axis.imshow(shown[..., 0] if shown.shape[-1] == 1 else shown, cmap="gray", vmin=0, vmax=1)
            axis.set_xticks([])
            axis.set_yticks([])
            right = panel.right[row][column] if panel.right else None
            if panel.captions:
                axis.set_xlabel(panel.captions[row][column], color=COLOURS[right], fontsize=8)
            axis.spines[:].set(color=COLOURS[right], linewidth=2 if panel.right else 0.5)
            if row == 0:
                axis.set_title(panel.columns[column], fontsize=9)
    return figure
