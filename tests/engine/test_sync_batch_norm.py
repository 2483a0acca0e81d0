"""Batch norm of two processes against torch's batch norm on the full batch."""

import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from ssl_lightning.core.image_spec import ImageSpec
from ssl_lightning.engine.sync_batch_norm import synchronise_batch_norm
from ssl_lightning.networks.convnet import ConvNet
from ssl_lightning.tasks.inpainting import Inpainting
from tests._two_processes import in_two_processes


def network() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), BatchNormAct2d(4), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5, momentum=None),
        nn.ReLU(), nn.BatchNorm2d(5, affine=False), nn.Flatten(), nn.Linear(80, 6), nn.BatchNorm1d(6),
    )  # fmt: skip
    for part in net.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.affine:
            nn.init.uniform_(part.weight, 0.5, 2)
            nn.init.normal_(part.bias)
    return net


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = 3 + 2 * torch.randn(8, 3, 8, 8, generator=generator)
    return x, torch.randn(8, 6, generator=generator)


def train(net: nn.Module, x: torch.Tensor, target: torch.Tensor, bf16: bool) -> None:
    for _ in range(2):  # the second pass updates the running statistics again
        net.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            y = net(x.to(memory_format=torch.channels_last))
        (y.float() - target).square().mean().backward()


def one_rank(rank: int, folder: Path) -> None:
    for bf16 in (False, True):
        net = synchronise_batch_norm(network(), on_gpu=False)
        x, target = (part.chunk(2)[rank] for part in batch())
        train(nn.parallel.DistributedDataParallel(net), x, target, bf16)
        if rank == 0:
            grads = {name: p.grad for name, p in net.named_parameters()}
            torch.save({"grads": grads, "state": net.state_dict()}, folder / f"{bf16}.pt")


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    in_two_processes(one_rank, folder)
    return folder


@pytest.mark.parametrize("bf16", [False, True])
def test_two_processes_equal_one(two_processes: Path, bf16: bool) -> None:
    two = torch.load(two_processes / f"{bf16}.pt", weights_only=True)
    net = network()
    train(net, *batch(), bf16)
    assert two["state"].keys() == net.state_dict().keys()
    for name, value in net.state_dict().items():  # the same statistics of the same bfloat16 maps
        torch.testing.assert_close(two["state"][name], value, rtol=1e-4, atol=1e-2 if bf16 else 1e-5)
    for name, parameter in net.named_parameters():
        loose = {"rtol": 0.1, "atol": 0.02} if bf16 else {"rtol": 1e-3, "atol": 2e-5}
        torch.testing.assert_close(two["grads"][name], parameter.grad, **loose)
    # and it differs from the result on half of the batch
    half = network()
    train(half, *(part.chunk(2)[0] for part in batch()), bf16)
    assert not torch.allclose(half.state_dict()["1.running_mean"], two["state"]["1.running_mean"], atol=2e-2)


def test_evaluation_and_a_single_process_equal_torch() -> None:
    x, _ = batch()
    net = network()
    synced = synchronise_batch_norm(copy.deepcopy(net), on_gpu=False)
    assert torch.equal(synced(x), net(x))
    assert torch.equal(synced.eval()(x), net.eval()(x))


def test_an_unknown_batch_norm_is_refused() -> None:
    class Odd(nn.BatchNorm2d):
        pass

    with pytest.raises(ValueError, match="Odd, which cannot share"):
        synchronise_batch_norm(nn.Sequential(Odd(3)), on_gpu=False)


def test_a_second_derivative_is_refused() -> None:
    options = {"r1": 1.0, "discriminator_norm": "batch", "discriminator_width": 4}
    spec = ImageSpec(3, 16, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    task = Inpainting(ConvNet(widths=(4, 4), strides=(2, 2)), spec, **options)
    trainer = SimpleNamespace(precision="32-true")
    task.check_trainer(trainer)
    synchronise_batch_norm(task, on_gpu=False)
    with pytest.raises(ValueError, match=r"task.r1 is 1.0, and batch norm over several processes"):
        task.check_trainer(trainer)
