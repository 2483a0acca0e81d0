"""Discriminators of real and generated pictures (SRGAN: Ledig et al. 2017, sec. 2.1.1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

from ssl_lightning.networks.features import StagedNetwork, check_in_channels
from ssl_lightning.networks.heads import FlattenedClassifier, PooledClassifier

MAX_STAGES = 5
NORMS = ("batch", "spectral", "none")
JUDGES = ("average", "flattened")


class Discriminator(StagedNetwork):
    """Stages of two 3x3 convolutions, the second with stride 2; LeakyReLU 0.2, no pooling.

    With width 64 and four stages these are SRGAN's eight convolutions. A map has ceil(H / reduction) rows.
    The decision is made by a head, see `PooledClassifier` and `FlattenedClassifier`.

    Args:
        in_channels: Channels of the images, at least 1.
        stages: Number of stages, 1 to 5; see `discriminator_stages`.
        width: Channels of the first stage; each further one has twice as many, up to `max_width`.
        max_width: Upper bound for the channels of a stage.
        norm: "batch" follows every convolution but the first, which takes the pixels, as in SRGAN. "spectral"
            divides the weight of every convolution by its largest singular value (Miyato et al. 2018). "none"
            leaves the convolutions alone.

    Raises:
        ValueError: A number or a name is out of range.
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        stages: int = 3,
        width: int = 32,
        max_width: int = 512,
        norm: str = "batch",
    ) -> None:
        check_in_channels(in_channels)
        if not 1 <= stages <= MAX_STAGES or min(width, max_width) < 1:
            raise ValueError(
                f"a discriminator with stages {stages}, width {width} and max_width {max_width}; allowed are "
                f"1 to {MAX_STAGES} stages, and widths of at least 1"
            )
        if norm not in NORMS:
            raise ValueError(f"the norm of a discriminator is {norm!r}; allowed are {', '.join(NORMS)}")
        widths = [min(max_width, width * 2**stage) for stage in range(stages)]
        inputs = [in_channels, *widths[:-1]]
        parts = [
            nn.Sequential(
                *_convolve(before, after, 1, norm if number or norm != "batch" else "none"),
                *_convolve(after, after, 2, norm),
            )
            for number, (before, after) in enumerate(zip(inputs, widths, strict=True))
        ]
        super().__init__(parts, widths, [2 ** (number + 1) for number in range(stages)])


def discriminator_stages(image_size: int) -> int:
    """Return the number of stages, 1 to 5, that leaves maps of at least 4 x 4 cells, as in both papers.

    >>> [discriminator_stages(size) for size in (8, 16, 32, 64, 96, 224)]
    [1, 2, 3, 4, 4, 5]
    """
    return min(MAX_STAGES, max(1, (image_size // 4).bit_length() - 1))


def make_judge(
    discriminator: Discriminator, grid: Sequence[int], outputs: int, kind: str, norm: str
) -> PooledClassifier | FlattenedClassifier:
    """Make a head on the last stage map of a discriminator.

    Args:
        discriminator: The discriminator.
        grid: Rows and columns of that map.
        outputs: Number of logits.
        kind: "average" or "flattened".
        norm: Norm of the discriminator; "spectral" covers the head too.
    """
    head: PooledClassifier | FlattenedClassifier
    if kind == "average":
        head = PooledClassifier(discriminator, outputs)
    else:
        head = FlattenedClassifier(discriminator, grid, outputs)
    if norm == "spectral":
        spectral_norm(head.linear)
    return head


@contextmanager
def frozen(*networks: nn.Module) -> Iterator[None]:
    """Pass gradients through networks without computing gradients of their weights."""
    parameters = [p for network in networks for p in network.parameters() if p.requires_grad]
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in parameters:
            p.requires_grad_(True)


@contextmanager
def unrecorded(*networks: nn.Module) -> Iterator[None]:
    """Run networks in training mode without updating their state.

    Batch norm uses the batch's statistics and keeps its running ones. Spectral norm uses its present estimate
    of the singular values without improving it, so that all batches of a step see the same weights.
    """
    modules = [m for network in networks for m in network.modules()]
    norms = [m for m in modules if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    spectral: list[Any] = [m.parametrizations for m in modules if parametrize.is_parametrized(m)]
    modes = [each.training for each in spectral]
    for norm in norms:
        norm.momentum = 0.0
    for each in spectral:
        each.eval()
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for each, mode in zip(spectral, modes, strict=True):
            each.train(mode)


def _convolve(before: int, after: int, stride: int, norm: str) -> list[nn.Module]:
    convolution = nn.Conv2d(before, after, 3, stride, padding=1, bias=norm != "batch")
    activation = nn.LeakyReLU(0.2, inplace=True)
    if norm == "batch":
        return [convolution, nn.BatchNorm2d(after), activation]
    return [spectral_norm(convolution) if norm == "spectral" else convolution, activation]
