"""AlexNet with batch norm, as RotNet (Gidaris 2018, sec. 4.2) and VISSL (Goyal 2019) train it."""

from __future__ import annotations

from torch import Tensor, nn

from ssl_lightning.networks.features import StagedNetwork, check_in_channels

# channels, kernel, stride, padding, whether an unpadded 3x3 max-pooling with stride 2 precedes
LAYERS = (
    (64, 11, 4, 2, False),
    (192, 5, 1, 2, True),
    (384, 3, 1, 1, True),
    (256, 3, 1, 1, False),
    (256, 3, 1, 1, False),
)
REDUCTIONS = (4, 8, 16, 16, 16)
MIN_IMAGE_SIZE = 31  # conv1 must leave 7 cells; the two unpadded poolings reduce them to 3 and 1


class AlexNet(StagedNetwork):
    """The five convolutions of AlexNet (Krizhevsky 2014, "one weird trick"), each with batch norm and ReLU.

    conv1 (11x11/4, 64) - pool - conv2 (5x5, 192) - pool - conv3 (3x3, 384) - conv4 (3x3, 256) - conv5
    (3x3, 256). Stage map i is the output of conv i before any pooling. The linear classifiers of the
    published tables use these maps and pool them themselves. Images of 224 px give maps of 55, 27, 13, 13
    and 13: the poolings are unpadded, so maps are up to two cells smaller than H / reduction. The backbone
    ends before pool5 and the fully-connected layers. Convolutions keep their biases and PyTorch's initial
    weights, as in the authors' code.

    Args:
        in_channels: Channels of the images, at least 1.

    Raises:
        ValueError: `in_channels` is below 1.
    """

    def __init__(self, *, in_channels: int = 3) -> None:
        check_in_channels(in_channels)
        stages = []
        for channels, kernel, stride, padding, pooled in LAYERS:
            layers: list[nn.Module] = [nn.MaxPool2d(3, stride=2)] if pooled else []
            layers += [nn.Conv2d(in_channels, channels, kernel, stride, padding)]
            layers += [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
            stages.append(nn.Sequential(*layers))
            in_channels = channels
        super().__init__(stages, [layer[0] for layer in LAYERS], REDUCTIONS, MIN_IMAGE_SIZE)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map `(B, C, H, W)` floats, H and W at least 31, to the five stage maps.

        Raises:
            ValueError: The images are too small for the two unpadded poolings.
        """
        height, width = images.shape[-2:]
        if min(height, width) < MIN_IMAGE_SIZE:
            raise ValueError(
                f"images are {height} x {width} px; AlexNet needs at least {MIN_IMAGE_SIZE} px on each side"
            )
        return super().forward(images)
