"""Lines of the progress of pretraining: epoch and batch, each of how many."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from ssl_lightning.callbacks.progress import ProgressBar
from ssl_lightning.core.seeding import generator
from ssl_lightning.networks.convnet import ConvNet
from ssl_lightning.tasks.base import PretextTask
from ssl_lightning.tasks.inpainting import Inpainting
from ssl_lightning.tasks.rotation import Rotation


class Endless(IterableDataset):
    def __iter__(self) -> Iterator[Tensor]:
        while True:
            yield pictures(1)[0]


def pictures(count: int) -> Tensor:
    return torch.randint(256, (count, 3, 16, 16), dtype=torch.uint8, generator=generator("pictures"))


def inpainting() -> PretextTask:
    return Inpainting(network(), discriminator_width=4, decoder_width=8, accumulate_grad_batches=2)


def network() -> nn.Module:
    return ConvNet(widths=(8, 8), strides=(2, 2))


def lines(task: PretextTask, folder: Path, capsys: pytest.CaptureFixture, data: Any, **limits: int) -> Any:
    """Train with a line after every batch; return (epoch, batch) of each."""
    trainer = pl.Trainer(
        default_root_dir=folder, accelerator="cpu", logger=False, callbacks=[ProgressBar(plain_every_s=1e-9)],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, **limits,
    )  # fmt: skip
    trainer.fit(task, DataLoader(data, batch_size=4))
    return re.findall(r"^epoch (\S+): batch (\S+)", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"max_epochs": 2}, [("1/2", "1/2"), ("1/2", "2/2"), ("2/2", "1/2"), ("2/2", "2/2")]),
        ({"max_epochs": 20, "max_steps": 3}, [("1/2", "1/2"), ("1/2", "2/2"), ("2/2", "1/1")]),
        ({"max_epochs": -1, "max_steps": 1}, [("1/1", "1/1")]),
        ({"max_epochs": 1, "max_steps": 30}, [("1/1", "1/2"), ("1/1", "2/2")]),
    ],
)
def test_the_first_limit_counts(
    limits: dict[str, int], expected: Any, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    images = TensorDataset(pictures(8))
    assert lines(Rotation(network()), tmp_path, capsys, images, **limits) == expected


@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
def test_steps_of_two_networks_and_accumulated_batches(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    images = TensorDataset(pictures(12))
    found = lines(inpainting(), tmp_path, capsys, images, max_epochs=9, max_steps=6)  # 3 of each network
    assert found == [("1/2", "1/3"), ("1/2", "2/3"), ("1/2", "3/3"), ("2/2", "1/2"), ("2/2", "2/2")]


@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
def test_a_loader_without_length(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    found = lines(Rotation(network()), tmp_path, capsys, Endless(), max_epochs=1, max_steps=2)
    assert found == [("1", "1"), ("1", "2")]
