"""Order of gradients and messages in DDP: a bucket leaves while the backward pass goes on."""

import json
import os
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from pytorch_lightning.callbacks import Callback
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.utils.data import DataLoader

from ssl_lightning.core.image_spec import ImageSpec
from ssl_lightning.engine.trainer import make_trainer
from ssl_lightning.networks.convnet import ConvNet
from ssl_lightning.tasks.base import PretextTask
from ssl_lightning.tasks.inpainting import Inpainting
from ssl_lightning.tasks.rotation import Rotation
from tests._two_processes import in_two_processes

SPEC = ImageSpec(channels=3, image_size=16, mean=(0.5,) * 3, std=(0.25,) * 3)
BATCHES = 3
TASKS: dict[str, tuple[type[PretextTask], dict[str, Any]]] = {
    "rotation": (Rotation, {}),
    "inpainting": (Inpainting, {"adversarial_weight": 0.5}),
}


class Watch(Callback):
    """List for each backward pass, in order, which buckets leave and which first layers get gradients."""

    def __init__(self) -> None:
        self.passes: list[list[str]] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        for name, branch in pl_module.branches().items():
            first = next(branch.parameters())
            first.register_hook(lambda _, name=name: self.passes[-1].append(f"first layer of {name}"))
        trainer.strategy.model.register_comm_hook(None, self.send)

    def on_before_backward(self, *_: Any) -> None:
        self.passes.append([])

    def send(self, state: None, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        content = "gradients" if bucket.buffer().any() else "zeros"
        self.passes[-1].append(f"bucket {bucket.index()} of {content}")
        return allreduce_hook(None, bucket)


def train(rank: int, folder: Path) -> None:
    for name, (kind, options) in TASKS.items():
        torch.manual_seed(0)
        task = kind(ConvNet(widths=[8, 128, 256]), SPEC, **options)
        watch = Watch()
        with patch.dict(os.environ, {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}):
            trainer = make_trainer(
                accelerator="cpu", precision="32-true", callbacks=[watch], max_epochs=1,
                default_root_dir=folder, enable_progress_bar=False,
                **task.trainer_options({}),
            )  # fmt: skip
            pictures = torch.rand(8 * BATCHES, 3, 16, 16, generator=torch.Generator().manual_seed(rank))
            trainer.fit(task, DataLoader(list(pictures), batch_size=8))
        (folder / f"{name}{rank}.json").write_text(json.dumps(watch.passes))


@pytest.fixture(scope="module")
def passes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[list[str]]]:
    folder = tmp_path_factory.mktemp("two")
    in_two_processes(train, folder)
    found = {}
    for name in TASKS:
        found[name], other = (json.loads((folder / f"{name}{rank}.json").read_text()) for rank in (0, 1))
        assert found[name] == other
    return found


OVERLAP = ["bucket 0 of gradients", "first layer of backbone", "bucket 1 of gradients"]


def test_late_layers_are_sent_before_the_first_layer_has_its_gradient(passes: Any) -> None:
    first, *others = passes["rotation"]
    assert first == ["first layer of backbone", "bucket 0 of gradients"]  # DDP learns the order in this pass
    assert others == [OVERLAP] * (BATCHES - 1)


def test_a_generator_overlaps_and_a_small_discriminator_is_sent_at_its_end(passes: Any) -> None:
    assert passes["inpainting"][::2] == [OVERLAP] * BATCHES
    # each pass sends both networks; the generator has no gradients in the discriminator's pass
    alone = ["first layer of discriminator", "bucket 0 of gradients", "bucket 1 of zeros"]
    assert passes["inpainting"][1::2] == [alone] * BATCHES
