"""Every backbone of conf/ traces: `torch.export`, `torch.jit.trace`, with equal outputs."""

import warnings
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn

CONFIGS = sorted((Path(__file__).parents[2] / "conf/backbone").glob("*.yaml"))


class Maps(nn.Module):
    """Return the stage maps as a tuple, since a trace takes no list."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.backbone(images))


@pytest.fixture(scope="module", params=CONFIGS, ids=lambda path: path.stem)
def backbone(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return instantiate(OmegaConf.load(request.param), in_channels=3).eval()


def images(batch: int) -> Tensor:
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(batch))


@torch.no_grad()
def test_it_exports_with_any_batch(backbone: nn.Module) -> None:
    shapes = {"images": {0: torch.export.Dim.DYNAMIC}}
    exported = torch.export.export(Maps(backbone), (images(2),), dynamic_shapes=shapes).module()
    for batch in (2, 3):
        torch.testing.assert_close(exported(images(batch)), Maps(backbone)(images(batch)))


@torch.no_grad()
def test_it_is_traced(backbone: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is deprecated, and constants are traced
        traced = torch.jit.trace(Maps(backbone), (images(2).to(memory_format=torch.channels_last),))
    for batch in (2, 3):
        torch.testing.assert_close(traced(images(batch)), Maps(backbone)(images(batch)))
