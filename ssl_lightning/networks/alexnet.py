"""AlexNet with batch norm, as RotNet and VISSL train it."""

from __future__ import annotations

from torch import Tensor, nn

from ssl_lightning.networks.features import StagedNetwork

# (channels, kernel, stride, padding, whether a 3x3 max-pool with stride 2 comes before)
LAYERS = ((64, 11, 4, 2, False), (192, 5, 1, 2, True), (384, 3, 1, 1, True), (256, 3, 1, 1, False), (256, 3, 1, 1, False))
REDUCTIONS = (4, 8, 16, 16, 16)


class AlexNet(StagedNetwork):
    """The five convolutions of AlexNet ("one weird trick", Krizhevsky 2014), each with batch norm and ReLU.

    Stage i is the output of conv i before any pooling, which is where the linear classifiers of the
    published tables sit. Images of 224 px give maps of 55, 27, 13, 13 and 13. The fully-connected
    layers are not part of the trunk. Convolutions keep their biases, as in the authors' code.

    Args:
        in_channels: Channels of the images.
    """

    def __init__(self, *, in_channels: int = 3) -> None:
        stages = []
        for channels, kernel, stride, padding, pooled in LAYERS:
            layers: list[nn.Module] = [nn.MaxPool2d(3, 2)] if pooled else []
            layers += [nn.Conv2d(in_channels, channels, kernel, stride, padding)]
            layers += [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
            stages.append(nn.Sequential(*layers))
            in_channels = channels
        super().__init__(stages, [layer[0] for layer in LAYERS], REDUCTIONS)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map `(B, C, H, W)` floats, H and W at least 63, to the five stage maps.

        Raises:
            ValueError: The images are too small for the two unpadded poolings.
        """
        if min(images.shape[-2:]) < 63:
            raise ValueError(f"images are {tuple(images.shape[-2:])}; AlexNet needs at least 63 x 63 pixels")
        return super().forward(images)
