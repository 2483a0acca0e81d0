"""Search for the stages of any network: nodes that give the last feature map of each resolution."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import isqrt
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ssl_lightning.features.encode import evaluating
from ssl_lightning.networks.recipes import channel_misfit

SIZES = (64, 224, 32, 28, 96, 128, 256, 384)  # px of the images to try if no size is known
STEP = 64  # px by which the second image is larger; strides divide it
MAX_PREFIX = 16  # class and register tokens that may precede the patch tokens
BLOCKS = 4  # stages of a network with one resolution, such as a ViT
SHOWN = 20  # nodes in a message

Shape = tuple[int, ...]


class Stage(NamedTuple):
    """A node of a network whose output is a feature map.

    Attributes:
        name: Name of the submodule, as in `named_modules()`.
        layout: `(B, C, H, W)`, `(B, H, W, C)`, or `(B, prefix + H * W, C)`.
        channels: C.
        reduction: Image size over map size.
    """

    name: str
    layout: Literal["NCHW", "NHWC", "tokens"]
    channels: int
    reduction: int


def probe_image(network: nn.Module, channels: int, size: int) -> Tensor:
    """Make a black image `(1, channels, size, size)` with the device and dtype of the network's weights."""
    like = next((p for p in network.parameters() if p.is_floating_point()), torch.empty(0))
    return torch.zeros(1, channels, size, size, device=like.device, dtype=like.dtype)


def hooked_maps(network: nn.Module, channels: int, image_size: int | None) -> tuple[dict[str, Stage], int]:
    """Find the nodes that give a feature map, by passes of a small image.

    Args:
        network: Any network that takes images.
        channels: Channels of the images.
        image_size: Their height and width; None: the first usual size that the network takes.

    Returns:
        The nodes that run once, in their order, and the image size.

    Raises:
        ValueError: The network does not take such images.
    """
    return _maps(network, channels, image_size, lambda image: _node_shapes(network, image), _read)


def intermediate_maps(network: Any, channels: int, image_size: int | None) -> tuple[dict[str, Stage], int]:
    """Find the maps of timm's `forward_intermediates`, named as in the model's `feature_info`.

    The nodes have the order of timm's `indices`. The result is empty if the names are not unique.
    """
    declared = getattr(network, "feature_info", None)
    names = [each["module"] for each in declared] if isinstance(declared, list) else []

    def shapes(image: Tensor) -> tuple[dict[str, Shape], Exception | None]:
        try:
            maps = network.forward_intermediates(image, intermediates_only=True)
        except Exception as error:
            return {}, error
        usable = len(set(names)) == len(maps)
        return {name: tuple(x.shape) for name, x in zip(names, maps, strict=True)} if usable else {}, None

    return _maps(network, channels, image_size, shapes, _read_intermediate)


def default_stages(network: nn.Module, maps: Mapping[str, Stage]) -> list[Stage]:
    """Choose the last map of each resolution.

    Blocks are opened only if necessary, and single layers before the first block (the stem) are skipped. A
    network with one resolution gives four evenly spaced blocks, with the last one.

    Args:
        network: The network.
        maps: Its nodes, from `hooked_maps`.

    Returns:
        The stages, shallow to deep; empty if none is found.
    """
    order = {name: number for number, name in enumerate(maps)}
    names = list(_chain(network, "", maps))
    while True:
        nodes = sorted((name for name in names if name in maps), key=order.__getitem__)
        stages = last_of_each_resolution([maps[name] for name in _without_stem(network, nodes, maps)])
        outer = {name for name in names if len(_resolutions_within(name, maps)) > 1}
        if len(stages) > 1 or not outer:
            break
        opened = {name: list(_chain(network.get_submodule(name), f"{name}.", maps)) for name in outer}
        names = [node for name in names for node in opened.get(name, [name])]
    return stages if len(stages) > 1 else evenly_spaced(_repeated(network, maps)) or stages


def last_of_each_resolution(nodes: Sequence[Stage]) -> list[Stage]:
    """Choose the last map of each resolution up to the smallest one, which excludes a decoder."""
    smallest = max((node.reduction for node in nodes), default=0)
    end = max((number for number, node in enumerate(nodes, 1) if node.reduction == smallest), default=0)
    return list({node.reduction: node for node in nodes[:end]}.values())


def evenly_spaced(nodes: Sequence[Stage]) -> list[Stage]:
    """Choose up to four evenly spaced nodes, with the last one."""
    number = min(BLOCKS, len(nodes))
    return [nodes[(place + 1) * len(nodes) // number - 1] for place in range(number)]


def some_nodes(names: Iterable[str]) -> str:
    """Format the first names and the number of others; outer nodes precede inner ones."""
    ordered = sorted(names, key=lambda name: name.count("."))
    more = f" and {len(ordered) - SHOWN} more" if len(ordered) > SHOWN else ""
    return (", ".join(ordered[:SHOWN]) or "none") + more


def _first_line(error: Exception) -> str:
    """Return the first line of an error message."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _maps(
    network: nn.Module,
    channels: int,
    image_size: int | None,
    shapes: Callable[[Tensor], tuple[dict[str, Shape], Exception | None]],
    read: Callable[[str, Shape, Shape | None, int, int], Stage | None],
) -> tuple[dict[str, Stage], int]:
    sizes = [image_size] if image_size else list(dict.fromkeys([*_declared_sizes(network), *SIZES]))
    with evaluating(network), torch.no_grad():
        for size in sizes:
            small, error = shapes(probe_image(network, channels, size))
            if error is None:
                break
        if error is not None:
            tried = " or ".join(map(str, sizes))
            reason = channel_misfit(network, channels) or _first_line(error)
            raise ValueError(
                f"{type(network).__name__} takes no images of {channels} channel{'s' * (channels != 1)} and "
                f"{tried} px: {reason}"
            ) from error
        larger, _ = shapes(probe_image(network, channels, size + STEP))
    if not small.keys() <= larger.keys():  # it takes images of one size
        larger = {}
    maps: dict[str, Stage] = {}
    grid = 0
    for name, shape in small.items():
        stage = read(name, shape, larger.get(name), size, grid)
        if stage:
            maps[name] = stage
            grid = shape[2] if len(shape) == 4 else grid
    return maps, size


def _declared_sizes(network: nn.Module) -> Iterator[int]:
    """Yield the image sizes that a transformer declares."""
    for part in (network, getattr(network, "patch_embed", None)):
        for key in ("image_size", "img_size"):
            size = getattr(part, key, None)
            size = size[0] if isinstance(size, (tuple, list)) and size else size
            if isinstance(size, int):
                yield size


def _node_shapes(network: nn.Module, image: Tensor) -> tuple[dict[str, Shape], Exception | None]:
    """Return the output shapes of the nodes that run once, in order, and the error that ended the pass."""
    shapes: dict[str, Shape] = {}
    calls: dict[str, int] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            calls[name] = calls.get(name, 0) + 1
            output = first_output(output)
            if isinstance(output, Tensor) and output.ndim in (3, 4) and len(output) == len(image):
                shapes[name] = tuple(output.shape)

        return hook

    handles = [part.register_forward_hook(note(name)) for name, part in network.named_modules() if name]
    ended: Exception | None = None
    try:
        network(image)
    except Exception as error:  # unsuitable images raise many kinds of errors
        ended = error
    finally:
        for handle in handles:
            handle.remove()
    return {name: shape for name, shape in shapes.items() if calls[name] == 1}, ended


def first_output(output: Any) -> Any:
    """Return the first element if a module returns a tuple."""
    return output[0] if isinstance(output, tuple) and output else output


def _read(name: str, shape: Shape, larger: Shape | None, size: int, grid: int) -> Stage | None:
    """Interpret an output shape as a stage; None if it is not a map.

    Args:
        name: Name of the node.
        shape: Output shape for an image of `size` px.
        larger: Output shape for an image `STEP` px larger; None if the network does not take it.
        size: Image size in pixels.
        grid: Rows of the previous map; 0 without one.
    """
    if len(shape) == 3:
        rows = grid if grid > 1 else isqrt(shape[1])
        fixed = larger is not None and larger[1] == shape[1]
        if fixed or rows < 2 or not 0 <= shape[1] - rows**2 <= MAX_PREFIX:
            return None
        return Stage(name, "tokens", shape[2], round(size / rows))
    sides = [axis for axis in (1, 2, 3) if larger and larger[axis] != shape[axis]]
    if larger is None:  # only equal sides identify rows and columns
        sides = next(([axis, axis + 1] for axis in (2, 1) if shape[axis] == shape[axis + 1] > 1), [])
    if sides not in ([2, 3], [1, 2]):  # constant size, such as after global pooling
        return None
    reduction = _reduction(shape, larger, size)
    if sides == [2, 3]:
        return Stage(name, "NCHW", shape[1], reduction)
    return Stage(name, "NHWC", shape[3], reduction)


def _read_intermediate(name: str, shape: Shape, larger: Shape | None, size: int, _grid: int) -> Stage:
    return Stage(name, "NCHW", shape[1], _reduction(shape, larger, size))


def _reduction(shape: Shape, larger: Shape | None, size: int) -> int:
    """Compute image size over map size, from the growth of both if known, which ignores padding."""
    grown = larger[2] - shape[2] if larger else 0
    return max(1, round(STEP / grown if grown > 0 else size / shape[2]))


def _chain(parent: nn.Module, path: str, maps: Mapping[str, Stage]) -> Iterator[str]:
    """Yield the children that data pass in sequence, or the nodes inside them.

    A block that shrinks contains two resolutions; a module with more is itself a chain.
    """
    for key, child in parent.named_children():
        name = f"{path}{key}"
        within = len(_resolutions_within(name, maps))
        listed = isinstance(child, (nn.ModuleList, nn.ModuleDict)) and name not in maps
        if within > 2 or listed:
            yield from _chain(child, f"{name}.", maps)
        elif name in maps or within:
            yield name


def _resolutions_within(name: str, maps: Mapping[str, Stage]) -> set[int]:
    return {stage.reduction for node, stage in maps.items() if node.startswith(f"{name}.")}


def _without_stem(network: nn.Module, names: list[str], maps: Mapping[str, Stage]) -> list[str]:
    """Skip single layers before the first block, if the blocks alone have several resolutions."""
    layers = [_is_layer(network, name) for name in names]
    blocks = names[layers.index(False) :] if False in layers else []
    return blocks if len({maps[name].reduction for name in blocks}) > 1 else names


def _repeated(network: nn.Module, maps: Mapping[str, Stage]) -> list[Stage]:
    """Return the longest row of siblings of one class at the deepest stage; blocks before layers."""
    rows: dict[tuple[str, type], list[Stage]] = {}
    deepest = max((stage.reduction for stage in maps.values()), default=0)
    for name, stage in maps.items():
        if stage.reduction == deepest:
            parent = name.rpartition(".")[0]
            rows.setdefault((parent, type(network.get_submodule(name))), []).append(stage)
    ranked = sorted(rows.values(), key=lambda row: (not _is_layer(network, row[0].name), len(row)))
    return ranked[-1] if ranked and len(ranked[-1]) > 1 else []


def _is_layer(network: nn.Module, name: str) -> bool:
    return next(network.get_submodule(name).children(), None) is None
