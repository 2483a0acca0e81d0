"""Eight-bit pixels of Pillow images, and facts about the pixels of the file that they no longer show."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import ImageFileDirectory_v2

GREY_MODES = ("1", "L", "LA", "La", "I", "F")  # of Pillow, besides I;16 and its like
UNMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}
SAMPLES, PHOTOMETRIC, PAGE, BITS = 277, 262, 254, 258  # tags of TIFF
WHITE_IS_ZERO = 0  # value of PHOTOMETRIC
OTHER_SIZE_OR_MASK = 1 | 4  # flags of PAGE
ANIMATED = ("GIF", "PNG", "WEBP")


class UnknownRangeError(ValueError):
    """Floating-point pixels have no known range.

    Args:
        low: The smallest value.
        high: The largest one.
    """

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high
        super().__init__(
            f"floating-point pixels have no known range; these have values from {low:g} to {high:g}: give "
            f"data.value_range=[{low:g},{high if high > low else low + 1:g}]"
        )


@dataclass(frozen=True)
class Facts:
    """Contents of a picture file that its 8-bit pixels no longer show.

    Args:
        wide: Smallest and largest value of grey pixels of more than 8 bits, unless the file names its range.
        upper: Largest upper byte of colours of 16 bits, whose lower bytes are not read.
        transparent: Whether some pixels are transparent.
        pictures: Number of pictures in the file, of which the first is read.
    """

    wide: tuple[float, float] | None = None
    upper: int | None = None
    transparent: bool = False
    pictures: int = 1


def eight_bit(
    image: Image.Image, channels: int, value_range: tuple[float, float] | None = None
) -> Image.Image:
    """Convert an image of any mode to upright 8-bit grey, RGB or RGBX.

    Args:
        image: The image. If it comes from a file, its pixels must not be loaded yet.
        channels: 1 for grey, 3 for RGB; 4 for four channels as they are, the fourth may be opacity.
        value_range: Values of pixels of more than 8 bits that become 0 and 255; None for 0 and 65535.

    Raises:
        ValueError: The pixels have no known range, or a channel would be lost or is missing.
    """
    raw = raw_mode(image)
    _keep_fourth_channel(image, raw)
    upright: Image.Image = ImageOps.exif_transpose(image)
    _check_lost_channels(image, channels)
    if _is_wide(upright):
        upright = Image.fromarray(_narrow(np.asarray(upright), image, raw, value_range))
    elif value_range is not None and ";16" in raw:
        raise ValueError(
            "it has colours of 16 bits, of which Pillow reads the upper 8, and data.value_range is for grey "
            "pixels; convert it to 8 bits, or give data.value_range=null"
        )
    if upright.mode in UNMULTIPLIED:
        upright = upright.convert(UNMULTIPLIED[upright.mode])
    if channels == 4:
        return _four_channels(upright)
    if upright.mode == "P":  # take the colours of the palette, not its indices
        upright = upright.convert("RGBA" if "transparency" in upright.info else "RGB")
    return upright.convert("L" if channels == 1 else "RGB")


def examine(
    image: Image.Image, channels: int, value_range: tuple[float, float] | None = None
) -> tuple[Image.Image, Facts]:
    """Convert an image as `eight_bit` does, and return the facts that its pixels do not show.

    Raises:
        ValueError: See `eight_bit`.
        OSError: The file is truncated.
    """
    raw = raw_mode(image)
    converted = eight_bit(image, channels, value_range)
    wide: Any = None
    upper = None
    if _is_wide(image):
        wide = None if image.format == "PPM" or raw == "I;12" else image.getextrema()
    elif ";16" in raw:
        colours = [band for band in image.getbands() if band != "A"]
        upper = max(int(image.getchannel(band).getextrema()[1]) for band in colours)  # type: ignore[arg-type]
    transparent = channels != 4 and is_transparent(image)
    return converted, Facts(wide, upper, transparent, _pictures(image))


def inspect_image(image: Image.Image, channels: int, value_range: tuple[float, float] | None = None) -> Facts:
    """Return what `examine` does, without the converted image.

    An ordinary JPEG cannot fail to convert. It is read to its end as in a full decoding, and so raises the
    same errors, but at an eighth of its size.

    Raises:
        ValueError: See `eight_bit`.
        OSError: The file is truncated.
    """
    if channels == 4 or image.format != "JPEG" or "exif" in image.info:
        return examine(image, channels, value_range)[1]
    image.draft(None, (1, 1))
    image.load()
    return Facts()


def describe_facts(
    found: Sequence[Facts], channels: int, value_range: tuple[float, float] | None = None
) -> list[str]:
    """Describe in sentences, with numbers, how pictures are read differently from what their files hold."""
    total, sentences = len(found), []
    wide = [facts.wide for facts in found if facts.wide is not None]
    upper = [facts.upper for facts in found if facts.upper is not None]
    transparent = sum(facts.transparent for facts in found)
    pictures = [facts.pictures for facts in found if facts.pictures > 1]
    if wide:
        low, high = min(pair[0] for pair in wide), max(pair[1] for pair in wide)
        sentences += _describe_wide(f"{len(wide)} of {total} images", low, high, value_range)
    if upper:
        sentences.append(
            f"{len(upper)} of {total} images have colours of 16 bits, of which the upper 8 are read; they "
            f"reach {max(upper)} of 255"
            + ("; convert the files to 8 bits over the range that they use" if max(upper) < 128 else "")
        )
    if transparent:
        sentences.append(
            f"{transparent} of {total} images have transparent pixels; transparency is ignored, and the "
            "colours under it count; data.channels=4 reads it as a fourth channel"
        )
    if pictures:
        sentences.append(
            f"{len(pictures)} of {total} files hold several pictures, {sum(pictures)} in all; the first of "
            "each is read"
        )
    return sentences


def check_value_range(value_range: Sequence[float] | None) -> tuple[float, float] | None:
    """Return the range as a pair.

    Raises:
        ValueError: It is not a smaller and a larger number.
    """
    if value_range is None:
        return None
    if len(value_range) != 2 or not -math.inf < value_range[0] < value_range[1] < math.inf:
        raise ValueError(
            f"data.value_range is {list(value_range)}; allowed are null, and the two values that become "
            "black and white, such as [0,4095] for 12 bits"
        )
    return float(value_range[0]), float(value_range[1])


def rescale(values: np.ndarray, value_range: tuple[float, float]) -> np.ndarray:
    """Map a range of values to 0..255, uint8; values outside are cut off.

    >>> rescale(np.array([-1, 0, 2048, 4095, 9999]), (0, 4095)).tolist()
    [0, 0, 128, 255, 255]
    """
    low, high = value_range
    shares = (values.astype(np.float64) - low) / (high - low)
    scaled: np.ndarray = (shares.clip(0, 1) * 255).round().astype(np.uint8)
    return scaled


def pillow_channels(mode: str) -> int:
    """Return the channels of a Pillow mode: 1 for grey, 3 for the others."""
    return 1 if mode in GREY_MODES or mode.startswith("I;") else 3


def is_transparent(image: Image.Image) -> bool:
    """Return whether some pixels of a loaded image are not opaque."""
    if not image.has_transparency_data or image.format == "TIFF":
        return False
    straight = image.convert(UNMULTIPLIED.get(image.mode, image.mode)).convert("RGBA")
    lowest: Any = straight.getchannel("A").getextrema()[0]
    return bool(lowest < 255)


def raw_mode(image: Image.Image) -> str:
    """Return Pillow's name for the pixels in the file, such as RGB;16B; empty once they are loaded."""
    tiles = getattr(image, "tile", None)
    if not tiles:
        return ""
    args = tiles[0][3]
    return str(args[0]) if isinstance(args, tuple) and args else str(args)


def tiff_layout(file: Any) -> str | None:
    """Describe the pixels of a TIFF that Pillow does not read; None if it is no TIFF."""
    try:
        file.seek(0)
        directory = ImageFileDirectory_v2(file.read(8))
        file.seek(directory.next)
        directory.load(file)
        bits = sorted(set(directory.get(BITS, (1,))))
    except Exception:  # it raises nearly everything on other files
        return None
    return f"a TIFF of {directory.get(SAMPLES, 1)} channels of {'/'.join(map(str, bits))} bits"


def _is_wide(image: Image.Image) -> bool:
    """Return whether an image has one channel of more than 8 bits."""
    return image.mode.startswith("I") or image.mode == "F"


def _keep_fourth_channel(image: Image.Image, raw: str) -> None:
    """Let Pillow read four channels of a TIFF as they are; it drops the fourth or divides by it."""
    if image.format == "TIFF" and raw.startswith(("RGBX", "RGBa")) and _samples(image) == 4:
        kept: Any = image
        kept._mode = "RGBX"  # as Pillow's own readers set it
        raw = f"RGBX{raw[4:]}"
        kept.tile = [
            tile._replace(args=(raw, *tile.args[1:]) if isinstance(tile.args, tuple) else raw)
            for tile in kept.tile
        ]


def _check_lost_channels(image: Image.Image, channels: int) -> None:
    if image.format != "TIFF":
        return
    held, read = _samples(image), len(image.getbands())
    if held > read:
        raise ValueError(
            f"it has {held} channels, of which Pillow reads {read}; allowed are TIFFs of 1, 3 and 4 channels"
        )
    if channels == 4 or image.mode not in ("RGBX", "RGBA"):
        return
    low, high = image.getextrema()[3]  # type: ignore[misc]
    if low != high:
        raise ValueError("it has 4 channels; give data.channels=4, since 1 and 3 would drop the fourth")


def _samples(image: Any) -> int:
    return int(image.tag_v2.get(SAMPLES, 1))


def _narrow(values: np.ndarray, image: Any, raw: str, value_range: tuple[float, float] | None) -> np.ndarray:
    """Map grey values of more than 8 bits to 8 bits, (H, W) uint8."""
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise ValueError("it has floating-point pixels that are not finite")
        if value_range is None:
            raise UnknownRangeError(float(values.min()), float(values.max()))
    if image.format == "PPM":  # scaled by Pillow to 65535 from the largest value that the file names
        value_range = None
    elif raw == "I;12" and value_range is None:
        value_range = (0, 4095)
    if value_range is None:  # a direct conversion by Pillow would clip at 255
        narrow = (values.astype(np.int64).clip(0, 65535) // 257).astype(np.uint8)
    else:
        narrow = rescale(values, value_range)
    inverted = image.format == "TIFF" and image.tag_v2.get(PHOTOMETRIC) == WHITE_IS_ZERO
    return 255 - narrow if inverted else narrow


def _four_channels(image: Image.Image) -> Image.Image:
    """Return four channels as RGBX or CMYK, which Pillow resizes one by one; RGBA it weights by opacity."""
    if image.mode in ("RGBX", "CMYK"):
        return image
    if not image.has_transparency_data:
        held = pillow_channels(image.mode)
        raise ValueError(
            f"it has {held} channel{'s' * (held > 1)}, and data.channels is 4; give pictures of 4 channels, "
            f"or data.channels={held}"
        )
    return Image.merge("RGBX", image.convert("RGBA").split())


def _pictures(image: Any) -> int:
    """Count the pictures of a file, without smaller copies and masks of the first one."""
    with contextlib.suppress(Exception):  # later pictures may be broken
        if image.format in ANIMATED:
            return int(getattr(image, "n_frames", 1))
        if image.format == "TIFF" and image.tell() == 0:
            count = 0
            for page in range(image.n_frames):
                image.seek(page)
                count += not image.tag_v2.get(PAGE, 0) & OTHER_SIZE_OR_MASK
            image.seek(0)
            return max(1, count)
    return 1


def _describe_wide(
    images: str, low: float, high: float, value_range: tuple[float, float] | None
) -> list[str]:
    start = f"{images} have pixels of more than 8 bits, with values from {low:g} to {high:g}"
    if value_range is None:
        cut = "; values outside are cut off" if low < 0 or high > 65535 else ""
        levels = min(high, 65535) // 257 - max(low, 0) // 257 + 1
        return [
            f"{start}: 0 to 65535 are read as 0 to 255, which leaves {max(1, levels):.0f} of 256 grey "
            f"levels{cut}; data.value_range=[{low:g},{high if high > low else low + 1:g}] uses all of them"
        ]
    if low < value_range[0] or high > value_range[1]:
        return [
            f"{start}: those outside data.value_range=[{value_range[0]:g},{value_range[1]:g}] are cut off"
        ]
    return []
