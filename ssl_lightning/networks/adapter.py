"""Adapters that turn any network (torchvision, timm, or your own) into a backbone."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ssl_lightning.features.encode import evaluating
from ssl_lightning.networks.features import FeatureInfo, check_in_channels
from ssl_lightning.networks.stages import (
    STEP,
    Stage,
    default_stages,
    evenly_spaced,
    first_output,
    hooked_maps,
    intermediate_maps,
    last_of_each_resolution,
    probe_image,
    some_nodes,
)


def as_backbone(
    module: nn.Module,
    *,
    stages: Sequence[str] | None = None,
    image_size: int | None = None,
    in_channels: int = 3,
) -> nn.Module:
    """Turn a module into a backbone: images `(B, C, H, W)` in, list of stage maps `(B, C_i, H_i, W_i)` out.

    A backbone, such as this project's or timm's `features_only`, is returned unchanged. Otherwise one or two
    passes of a small image find the stages, the last map of each resolution: `layer1` to `layer4` of
    torchvision's resnet18. A network with one resolution, such as a ViT, gives four evenly spaced blocks.
    timm's models run through `forward_intermediates`, all others with forward hooks on the stages.

    The backbone shares the module's weights under the same names: `state_dict()` has no prefix. It modifies
    the module: layers that do not lead to the last stage, such as the classifier, become `nn.Identity`.
    Other unused parameters are frozen, since DDP allows none.

    Args:
        module: Any network that takes images.
        stages: Names of the nodes whose outputs are the stages, as in `named_modules()`, in any order. A node
            that runs more than once cannot be a stage. None: see above.
        image_size: Height and width of the images; needed for networks that take only one unusual size.
        in_channels: Channels of the images, at least 1.

    Returns:
        The backbone, with `feature_info.channels()`, `.reduction()` and `.module_name()`.

    Raises:
        ValueError: The module does not take such images, lacks the nodes, or does not shrink the image.

    Example:
        >>> import torchvision
        >>> backbone = as_backbone(torchvision.models.resnet18())
        >>> backbone.feature_info.channels(), backbone.feature_info.reduction()
        ([64, 128, 256, 512], [4, 8, 16, 32])
    """
    if stages is None and _is_backbone(module):
        return _channels_first(module)
    check_in_channels(in_channels)
    if stages is not None and (isinstance(stages, str) or not stages):
        raise ValueError(
            f"stages is {stages!r}; allowed is a list of node names, such as ['layer3', 'layer4']"
        )
    backbone: AdaptedBackbone | None = None
    if hasattr(module, "forward_intermediates"):
        maps, size = intermediate_maps(module, in_channels, image_size)
        if maps and (stages is None or maps.keys() >= set(stages)):
            each = last_of_each_resolution(list(maps.values()))
            automatic = each if len(each) > 1 else evenly_spaced(list(maps.values()))
            chosen = _chosen(module, maps, stages, automatic)
            backbone = IntermediatesBackbone(module, chosen, list(maps))
    if backbone is None:
        maps, size = hooked_maps(module, in_channels, image_size)
        backbone = HookedBackbone(module, _chosen(module, maps, stages, default_stages(module, maps)))
    images = [probe_image(module, in_channels, side) for side in (size, size + 24, size + STEP)]
    _drop_unused(backbone, images[0])
    if isinstance(backbone, HookedBackbone):
        backbone.run_to_the_end(images)
    return backbone


class AdaptedBackbone(nn.Module):
    """Network with the contract of a backbone; `as_backbone` chooses the subclass.

    Args:
        network: The network. It is not a submodule: the backbone shares its parameters, buffers and children,
            so that all names stay.
        stages: Its stages, in the order of the forward pass.
    """

    _network: Any

    def __init__(self, network: nn.Module, stages: Sequence[Stage]) -> None:
        super().__init__()
        for table in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            setattr(self, table, getattr(network, table))
        self.__dict__["_network"] = network
        self.training = network.training
        self.feature_info = FeatureInfo(
            [stage.channels for stage in stages],
            [stage.reduction for stage in stages],
            [stage.name for stage in stages],
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map `(B, C, H, W)` floats to the stage maps, each `(B, C_i, H_i, W_i)`, shallow to deep."""
        if self._network.training != self.training:
            self._network.training = self.training
        return self._encode(images)

    def _encode(self, images: Tensor) -> list[Tensor]:
        raise NotImplementedError


class IntermediatesBackbone(AdaptedBackbone):
    """A timm model run through `forward_intermediates`.

    Args:
        network: The model.
        stages: Its stages.
        names: Names of all maps that the model can return, in the order of timm's `indices`.
    """

    def __init__(self, network: nn.Module, stages: Sequence[Stage], names: Sequence[str]) -> None:
        super().__init__(network, stages)
        self._indices = [names.index(stage.name) for stage in stages]
        self._stop_early = stages[-1].name != names[-1]

    def _encode(self, images: Tensor) -> list[Tensor]:
        return self._network.forward_intermediates(
            images, indices=self._indices, stop_early=self._stop_early, intermediates_only=True
        )


class HookedBackbone(AdaptedBackbone):
    """A network whose forward hooks store the outputs of the stages.

    After the last stage it runs to its end, which `as_backbone` has shortened, or is stopped.

    Args:
        network: The network.
        stages: Its stages.
    """

    def __init__(self, network: nn.Module, stages: Sequence[Stage]) -> None:
        super().__init__(network, stages)
        self._stages = list(stages)
        self._kept = _Kept()
        self._hooked: list[nn.Module | None] = [None] * len(stages)
        self._hook()

    def run_to_the_end(self, images: Sequence[Tensor]) -> None:
        """Run beyond the last stage, unless that fails for an image that has stage maps.

        Stopping raises an exception through the network, which not all tools support.
        """
        with evaluating(self), torch.no_grad():
            for image in images:
                self._kept.stop = True
                has_maps = self._takes(image)
                self._kept.stop = False
                if has_maps and not self._takes(image):
                    self._kept.stop = True
                    break

    def _takes(self, image: Tensor) -> bool:
        try:
            self(image)
        except Exception:  # unsuitable images raise many kinds of errors
            return False
        return True

    def _hook(self) -> None:
        """Hook the nodes of the stages: all at first, later the replaced ones, such as by SyncBatchNorm."""
        for place, stage in enumerate(self._stages):
            node = self.get_submodule(stage.name)
            if node is not self._hooked[place]:
                is_last = place == len(self._stages) - 1
                node.register_forward_hook(_Tap(self._kept, stage.name, is_last))
                self._hooked[place] = node

    def _encode(self, images: Tensor) -> list[Tensor]:
        self._hook()
        kept = self._kept
        kept.running = True
        try:
            with contextlib.suppress(_LastStageError):
                self._network(images)
            return [_to_map(kept.outputs[stage.name], stage, images) for stage in self._stages]
        finally:
            kept.outputs, kept.running = {}, False


class _LastStageError(Exception):
    """End the forward pass of a network after its last stage."""


class _Kept:
    """Outputs of the stages in the current pass."""

    def __init__(self) -> None:
        self.outputs: dict[str, Tensor] = {}
        self.stop = True  # whether to stop at the last stage
        self.running = False  # false while other code runs the module, and in a recomputation for gradients


class _Tap:
    """Forward hook that stores the output of a stage.

    Args:
        kept: Destination.
        name: Name of the stage.
        is_last: Whether the pass may stop here.
    """

    def __init__(self, kept: _Kept, name: str, is_last: bool) -> None:
        self.kept, self.name, self.is_last = kept, name, is_last

    def __call__(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        if self.kept.running:
            self.kept.outputs[self.name] = first_output(output)
            if self.is_last and self.kept.stop:
                raise _LastStageError


def _is_backbone(module: nn.Module) -> bool:
    info = getattr(module, "feature_info", None)
    return all(callable(getattr(info, name, None)) for name in ("channels", "reduction"))


def _channels_first(backbone: Any) -> nn.Module:
    """Permute the maps `(B, H, W, C)` of a timm `features_only` model, such as Swin, to `(B, C, H, W)`."""
    output_format: Any = getattr(backbone, "output_fmt", None)
    if str(output_format).endswith("NHWC"):
        backbone.register_forward_hook(_permute)
        backbone.output_fmt = type(output_format)("NCHW")
    return backbone


def _permute(_backbone: nn.Module, _inputs: Any, maps: list[Tensor]) -> list[Tensor]:
    return [x.permute(0, 3, 1, 2) for x in maps]


def _chosen(
    module: nn.Module, maps: Mapping[str, Stage], names: Sequence[str] | None, automatic: list[Stage]
) -> list[Stage]:
    """Return the stages with these names, or the automatic ones.

    Raises:
        ValueError: The network has no stages, lacks a name, or does not shrink the image.
    """
    kind = type(module).__name__
    if names is not None:
        if unknown := [name for name in names if name not in maps]:
            raise ValueError(
                f"stages names {unknown[0]!r}, which is no node of {kind} that runs once and gives a feature "
                f"map; it has {some_nodes(maps)}"
            )
        return [maps[name] for name in maps if name in names]
    if not automatic:
        nodes = some_nodes(name for name, _ in module.named_modules() if name)
        raise ValueError(f"{kind} has no node that runs once and gives a feature map; its nodes are {nodes}")
    if all(stage.reduction == 1 for stage in automatic):
        raise ValueError(
            f"{kind} does not shrink the image; name its stages by stages=[...] to take it all the same, "
            f"from {some_nodes(maps)}"
        )
    return automatic


def _drop_unused(backbone: AdaptedBackbone, image: Tensor) -> None:
    """Replace layers that do not lead to the last stage by `nn.Identity`; freeze other unused parameters."""
    called: set[nn.Module] = set()
    handles = [part.register_forward_pre_hook(lambda m, _: called.add(m)) for part in backbone.modules()]
    with evaluating(backbone), torch.enable_grad():
        last = backbone(image)[-1].sum()
    for handle in handles:
        handle.remove()
    unused = {p for p in backbone.parameters() if p.requires_grad}
    if last.requires_grad:
        trained = list(unused)
        gradients = torch.autograd.grad(last, trained, allow_unused=True)
        unused = {p for p, gradient in zip(trained, gradients, strict=True) if gradient is None}
    _replace_unused(backbone, unused, called)
    for parameter in unused:
        parameter.requires_grad_(False)


def _replace_unused(parent: nn.Module, unused: set[nn.Parameter], called: set[nn.Module]) -> None:
    for name, child in list(parent.named_children()):
        own = set(child.parameters())
        if own and own <= unused and called.isdisjoint(child.modules()):
            setattr(parent, name, nn.Identity().train(child.training))
        else:
            _replace_unused(child, unused, called)


def _to_map(output: Tensor, stage: Stage, images: Tensor) -> Tensor:
    """Convert the output of a stage to `(B, C, H, W)`."""
    if stage.layout == "NHWC":
        return output.permute(0, 3, 1, 2)
    if stage.layout == "NCHW":
        return output
    rows, columns = (side // stage.reduction for side in images.shape[2:])
    patches = output[:, -rows * columns :]  # class and register tokens come first
    return patches.transpose(1, 2).unflatten(2, (rows, columns))
