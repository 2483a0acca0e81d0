"""Pictures of the report, and figures for charts."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import same_color
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.spines import Spine
from matplotlib.text import Text
from PIL import Image

from ssl_lightning.report.colours import DARK_INK, DARK_PAPER, LIGHT_INK, LIGHT_PAPER

WIDE, NARROW = 11.6, 3.6  # width of a chart in inches, on a page of 1280 pixels and on a phone
PIXELS = 100  # pixels on the page for an inch; the file has twice as many
ACROSS = 5  # small charts in a row of a wide chart


@dataclass(frozen=True)
class Picture:
    """A picture on the page and in a file.

    Args:
        name: Stem of the file name.
        title: Title above the picture.
        caption: Description of the content and of omissions.
        png: Content as PNG.
        width: Width on the page in pixels.
        height: Height on the page in pixels.
        dark: The same chart on dark paper; None for a picture of images.
        narrow: The same chart for a phone.
        folded: Whether the page shows it only on a click.
    """

    name: str
    title: str
    caption: str
    png: bytes
    width: int
    height: int
    dark: bytes | None = None
    narrow: Picture | None = None
    folded: bool = False

    @property
    def chart(self) -> bool:
        """Whether it is a chart, not images."""
        return self.dark is not None


def chart(name: str, title: str, caption: str, figure: Figure, folded: bool = False) -> Picture:
    """Render a figure on light and on dark paper; the colours of tasks stay, text and axes change."""
    paint(figure, "black", LIGHT_INK, LIGHT_PAPER)
    light, (width, height) = render(figure)
    figure.set_layout_engine("none")  # the layout is done
    paint(figure, LIGHT_INK, DARK_INK, DARK_PAPER)
    dark, _ = render(figure)
    return Picture(name, title, caption, light, width, height, dark, folded=folded)


def paint(figure: Figure, old: str, ink: str, paper: str) -> None:
    """Give a new colour to the paper and to all text, ticks and axes of the old ink."""

    def change(get: Callable[[], Any], change_to: Callable[[str], object]) -> None:
        if same_color(get(), old):
            change_to(ink)

    figure.set_facecolor(paper)
    for axis in figure.axes:
        axis.set_facecolor(paper)
    artist: Artist
    for artist in figure.findobj():
        if isinstance(artist, Text | Line2D):
            change(artist.get_color, artist.set_color)
        elif isinstance(artist, Spine):
            change(artist.get_edgecolor, artist.set_edgecolor)


def render(figure: Figure) -> tuple[bytes, tuple[int, int]]:
    """Render a figure as PNG; return it and its size on the page in pixels."""
    figure.set_dpi(2 * PIXELS)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    shown = Image.frombuffer("RGBA", canvas.get_width_height(), canvas.buffer_rgba()).convert("RGB")
    return pack(shown), (shown.width // 2, shown.height // 2)


def pack(image: Image.Image) -> bytes:
    """Write a picture as a small PNG of at most 256 colours, the frequent ones exactly."""
    packed = io.BytesIO()
    few = image.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    few.save(packed, format="png", optimize=True)
    return packed.getvalue()


def grid(count: int, width: float, share: bool = False) -> tuple[Figure, list[Axes]]:
    """Make a figure with `count` small charts over a width in inches."""
    across = columns(count, width)
    down = math.ceil(count / across)
    height = min(2.9, max(1.9, 0.5 * width / across))
    figure = Figure(figsize=(width, 0.5 + height * down), layout="constrained")
    axes = list(figure.subplots(down, across, sharex=share, sharey=share, squeeze=False).flat)
    for axis in axes[count:]:
        axis.remove()
    for number, axis in enumerate(axes[:count]):
        axis.grid(alpha=0.25, linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8, labelbottom=not share or number + across >= count)
    return figure, axes[:count]


def columns(count: int, width: float) -> int:
    """Return how many of `count` small charts stand side by side over a width in inches."""
    most = ACROSS if width == WIDE else 2
    return math.ceil(count / math.ceil(count / most))
