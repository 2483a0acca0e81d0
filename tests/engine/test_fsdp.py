"""Sharded training in one process against plain training; tests/test_cluster.py runs two processes."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import SGD, AdamW, Optimizer
from torch.utils.data import DataLoader, TensorDataset

from ssl_lightning.engine.fsdp import local_parts, sharded_like, total_norm, unsharded_task
from ssl_lightning.engine.optim import use_fused_kernels
from ssl_lightning.engine.trainer import make_trainer

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "no state": lambda parameters: SGD(parameters, lr=0.01, weight_decay=0.1),
    "momentum": lambda parameters: SGD(parameters, lr=0.01, momentum=0.9, nesterov=True),
    "moments": lambda parameters: AdamW(parameters, lr=0.01),
}


class Small(pl.LightningModule):
    """Module with batch norm, a buffer, a frozen network, and a network without gradient.

    The layer before the batch norm has no bias, since Adam would amplify the rounding of its gradient.
    """

    def __init__(self, make_optimizer: Callable[..., Optimizer]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6), nn.Linear(6, 2))
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.unused = nn.Linear(2, 2)
        self.register_buffer("mean", torch.ones(3))
        self.make_optimizer = make_optimizer

    def networks(self) -> list[nn.Module]:
        return list(self.children())

    def configure_model(self) -> None:
        if hasattr(self.trainer.strategy, "shard"):
            self.trainer.strategy.shard(self)

    def configure_optimizers(self) -> Optimizer:
        optimizer = self.make_optimizer(self.parameters())
        if not hasattr(self.trainer.strategy, "shard"):
            use_fused_kernels(optimizer)
        return optimizer

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.frozen(self.net(batch[0])).square().mean()


@pytest.fixture(scope="module", autouse=True)
def no_process_group_is_left() -> Iterator[None]:
    before = dict(os.environ)
    yield
    if dist.is_initialized():
        dist.destroy_process_group()
    os.environ.clear()
    os.environ.update(before)


def fit(
    make_optimizer: Callable[..., Optimizer], strategy: str, steps: int, resumed_from: Path | None = None
) -> tuple[pl.Trainer, Small]:
    x = torch.randn(4, 4, generator=torch.Generator().manual_seed(1))
    trainer = make_trainer(
        accelerator="cpu", devices=1, strategy=strategy, precision="32-true", max_steps=steps, max_epochs=-1,
        enable_progress_bar=False,
    )  # fmt: skip
    task = Small(make_optimizer)
    trainer.fit(task, DataLoader(TensorDataset(x.repeat(8, 1)), 4), ckpt_path=resumed_from)
    return trainer, task


def saved(trainer: pl.Trainer) -> dict[str, Any]:
    state = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
    for group in state["optimizer_states"][0]["param_groups"]:
        del group["fused"]  # a choice of kernels
        del group["params"]  # numbers, or names in a sharded optimizer without state
    return state


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(("first", "then"), [("fsdp", "fsdp"), ("fsdp", "auto"), ("auto", "fsdp")])
def test_a_run_resumes_with_the_other_strategy(name: str, first: str, then: str, tmp_path: Path) -> None:
    expected = saved(fit(OPTIMIZERS[name], "auto", 6)[0])
    half, _ = fit(OPTIMIZERS[name], first, 3)
    half.save_checkpoint(tmp_path / "half.ckpt")
    found = saved(fit(OPTIMIZERS[name], then, 6, tmp_path / "half.ckpt")[0])
    assert list(found["state_dict"]) == list(expected["state_dict"])
    for key in ("state_dict", "optimizer_states"):
        torch.testing.assert_close(found[key], expected[key])


def test_readers_of_sharded_weights_see_all_values() -> None:
    trainer, task = fit(OPTIMIZERS["momentum"], "fsdp", 2)
    plain, same = fit(OPTIMIZERS["momentum"], "auto", 2)
    assert unsharded_task(plain, same) is same
    copy = unsharded_task(trainer, task)
    assert not any(isinstance(value, DTensor) for value in copy.state_dict().values())
    torch.testing.assert_close(copy.state_dict(), same.state_dict())
    weights = [p.detach() for p in task.net.parameters()]
    assert all(isinstance(value, DTensor) for value in weights)
    torch.testing.assert_close(total_norm(weights), total_norm([p.detach() for p in same.net.parameters()]))
    # one process holds all values
    assert torch.equal(local_parts(weights)[0], task.net[0].weight.full_tensor())
    assert sharded_like(weights[0], torch.ones(3)).shape == (3,)  # loading reports another shape


def test_a_parameter_outside_the_networks_is_refused() -> None:
    class Loose(Small):
        def __init__(self, make_optimizer: Callable[..., Optimizer]) -> None:
            super().__init__(make_optimizer)
            self.scale = nn.Parameter(torch.ones(1))

    trainer = make_trainer(accelerator="cpu", devices=1, strategy="fsdp", precision="32-true", max_steps=1)
    with pytest.raises(ValueError, match="scale of Loose is a parameter of the task and of none"):
        trainer.fit(Loose(OPTIMIZERS["momentum"]), DataLoader(TensorDataset(torch.ones(4, 4)), 4))
