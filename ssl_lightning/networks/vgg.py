"""Features of VGG19 for the content loss (SRGAN: Ledig et al. 2017, sec. 2.2.1)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

CONV5_4 = 36  # layers of torchvision's VGG19 up to the last convolution's ReLU
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SMALLEST = 16  # side in pixels that leaves one cell after four poolings


class VGGFeatures(nn.Module):
    """Map of the last convolution (conv5_4) of a VGG19 trained with ImageNet labels.

    Args:
        weights: File with torchvision's weights; None downloads them.

    Raises:
        ValueError: The file does not exist or does not hold these weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, weights: str | None = None) -> None:
        super().__init__()
        from torchvision.models import VGG19_Weights, vgg19

        with torch.device("meta"):  # allocates no memory and skips initialisation
            self.layers = vgg19(weights=None, init_weights=False).features[:CONV5_4]
        if weights is None:
            state = VGG19_Weights.IMAGENET1K_V1.get_state_dict(progress=False, check_hash=True)
        else:
            state = _read(Path(weights).expanduser())
        wanted = {f"features.{name}" for name in self.layers.state_dict()}
        try:
            self.layers.load_state_dict({name[9:]: state[name] for name in wanted}, assign=True)
        except (KeyError, RuntimeError) as error:
            raise ValueError(
                f"task.vgg_weights={weights} does not hold the weights of torchvision's vgg19: {error}"
            ) from error
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Map `(B, 1 or 3, H, W)` floats in [0, 1] to `(B, 512, H / 16, W / 16)`."""
        return self.layers((images.expand(-1, 3, -1, -1) - self.mean) / self.std)


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"task.vgg_weights is {path}, which is not there")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"task.vgg_weights={path} cannot be read: {error}") from error
    if not isinstance(state, dict):
        raise ValueError(f"task.vgg_weights={path} holds a {type(state).__name__}, not weights by name")
    return state
