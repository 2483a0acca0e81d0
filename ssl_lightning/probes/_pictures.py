"""Draw the predictions of the segmentation and detection probes beside the truth."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from torch import Tensor

from ssl_lightning.core.atomic_files import atomic_file

GOLDEN = 0.618034  # fraction of a turn; hues are far apart for any number of classes


def class_colour(label: int) -> tuple[float, float, float]:
    """Return the colour of a class as RGB in [0, 1], far from the colours of neighbouring labels."""
    return colorsys.hsv_to_rgb(
        label * GOLDEN % 1.0, 0.85 - 0.35 * (label % 3 == 2), 0.95 - 0.35 * (label % 2)
    )


def draw_masks(
    path: Path, images: Tensor, truth: Tensor, found: Tensor, class_names: Sequence[str], title: str
) -> None:
    """Draw images, true masks and predicted masks side by side; void pixels are white.

    Args:
        path: The PNG to write.
        images: `(R, C, H, W)` uint8.
        truth: `(R, H, W)` class ids, 255 void.
        found: `(R, H, W)` predicted class ids.
        class_names: In label order.
        title: Title of the figure.
    """
    palette = np.ones((256, 3))
    palette[: len(class_names)] = _colours(class_names)
    figure, axes = _grid(len(images), 3, images.shape[2:], title)
    for row, columns in enumerate(axes):
        _show(columns[0], images[row])
        columns[1].imshow(palette[truth[row].numpy()], interpolation="nearest")
        columns[2].imshow(palette[found[row].numpy()], interpolation="nearest")
    for axis, name in zip(axes[0], ("image", "truth", "found"), strict=True):
        axis.set_title(name, fontsize=9)
    _legend(figure, class_names)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def draw_boxes(
    path: Path,
    images: Tensor,
    truth: Sequence[Mapping[str, Tensor]],
    found: Sequence[Mapping[str, Tensor]],
    class_names: Sequence[str],
    title: str,
    *,
    min_score: float,
) -> None:
    """Draw images with true boxes beside the same images with predicted boxes.

    Args:
        path: The PNG to write.
        images: `(R, C, H, W)` uint8.
        truth: For each image boxes `(n, 4)`, labels `(n,)` and difficult `(n,)`; difficult ones are dotted.
        found: For each image predicted boxes, labels and scores.
        class_names: In label order.
        title: Title of the figure.
        min_score: Lowest score of a drawn box.
    """
    figure, axes = _grid(len(images), 2, images.shape[2:], title)
    for row, columns in enumerate(axes):
        sure = {key: value[found[row]["scores"] >= min_score] for key, value in found[row].items()}
        for axis, objects in zip(columns, (truth[row], sure), strict=True):
            _show(axis, images[row])
            dotted = objects.get("difficult")
            for i, (left, top, right, bottom) in enumerate(objects["boxes"].tolist()):
                style = ":" if dotted is not None and dotted[i] else "-"
                shape = Rectangle(
                    (left - 0.5, top - 0.5),
                    right - left,
                    bottom - top,
                    fill=False,
                    edgecolor=class_colour(int(objects["labels"][i])),
                    linewidth=1.5,
                    linestyle=style,
                )
                axis.add_patch(shape)
    for axis, name in zip(axes[0], ("truth", f"found, score at least {min_score:g}"), strict=True):
        axis.set_title(name, fontsize=9)
    _legend(figure, class_names)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def _colours(class_names: Sequence[str]) -> list[tuple[float, float, float]]:
    grey = (0.15, 0.15, 0.15)
    return [grey if name == "background" else class_colour(label) for label, name in enumerate(class_names)]


def _grid(rows: int, columns: int, size: Sequence[int], title: str) -> tuple[Figure, Any]:
    height, width = size
    cell = 2.4
    figure = Figure(figsize=(columns * cell + 1.8, rows * cell * height / width + 0.9), layout="constrained")
    figure.suptitle(title, fontsize=10)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    return figure, axes


def _show(axis: Any, image: Tensor) -> None:
    pixels = image.permute(1, 2, 0).numpy()  # (H, W, C)
    axis.imshow(pixels[..., 0] if pixels.shape[2] == 1 else pixels[..., :3], cmap="gray", vmin=0, vmax=255)


def _legend(figure: Figure, class_names: Sequence[str]) -> None:
    patches = [Patch(color=c, label=name) for c, name in zip(_colours(class_names), class_names, strict=True)]
    figure.legend(handles=patches, loc="outside right upper", fontsize=7)
