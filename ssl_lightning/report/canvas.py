"""Pictures of the report, and figures for charts."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

ACROSS = 4  # charts per row; one more for many charts
COLOURS = (
    "#3b6fd4", "#d9622b", "#2f9e6b", "#b0417f", "#8a63d2", "#c79a1e", "#1f9fb5", "#a15c3e", "#6b8e23",
    "#cc4455", "#5873a8", "#7d7d33",
)  # fmt: skip
GREY = "#8a8f98"


@dataclass(frozen=True)
class Picture:
    """A picture on the page and in a file.

    Args:
        name: Stem of the file name.
        title: Title above the picture.
        caption: Description of the content and of omissions.
        png: Content as PNG.
        width: Width on the page in pixels.
        chart: Whether it is a chart on white, which a dark page inverts.
    """

    name: str
    title: str
    caption: str
    png: bytes
    width: int
    chart: bool = True


def chart(name: str, title: str, caption: str, figure: Figure) -> Picture:
    """Render a figure to a picture with twice the pixels of its size on the page."""
    data = io.BytesIO()
    figure.savefig(data, dpi=200, format="png")
    with Image.open(data) as image:
        shown = image.convert("RGB")
    width = shown.width // 2
    packed = io.BytesIO()
    shown.quantize(128, dither=Image.Dither.NONE).save(packed, format="png", optimize=True)
    return Picture(name, title, caption, packed.getvalue(), width)


def grid(count: int, share: bool = False) -> tuple[Figure, list[Axes]]:
    """Make a figure with `count` small charts."""
    across = min(count, ACROSS + (count > 2 * ACROSS))
    down = math.ceil(count / across)
    figure = Figure(figsize=(0.5 + 2.15 * max(across, 2), 0.5 + 1.9 * down), layout="constrained")
    axes = list(figure.subplots(down, across, sharex=share, sharey=share, squeeze=False).flat)
    for axis in axes[count:]:
        axis.remove()
    for number, axis in enumerate(axes[:count]):
        axis.grid(alpha=0.25, linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8, labelbottom=not share or number + across >= count)
    return figure, axes[:count]
