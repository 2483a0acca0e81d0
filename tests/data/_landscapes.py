"""Random images with the spectrum of photographs."""

import torch
from torch import Tensor

from ssl_lightning.core.seeding import generator


def landscapes(count: int, size: int = 64, seed: str = "landscapes") -> Tensor:
    """Return images `(count, 3, size, size)` uint8 with the spectrum of photographs: amplitudes of 1/f."""
    noise = torch.fft.rfft2(torch.randn(count, 3, size, size, generator=generator(seed)))
    y, x = torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)
    images = torch.fft.irfft2(noise / (y**2 + x**2).sqrt().clamp_min(1 / size), s=(size, size))
    images = images + images.mean(1, keepdim=True)  # channels are alike
    low, high = (images.flatten(1).quantile(q, 1)[:, None, None, None] for q in (0.02, 0.98))
    return (255 * (images - low) / (high - low)).clamp(0, 255).byte()
