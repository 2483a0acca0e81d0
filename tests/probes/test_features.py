"""Encoding: once, in order, and the same through two processes."""

from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from ssl_lightning.networks.convnet import ConvNet
from ssl_lightning.probes.base import encode, gather_in_order, pool_map, run_probes
from ssl_lightning.probes.knn import KNNProbe
from ssl_lightning.probes.linear import LinearProbe
from ssl_lightning.seeding import generator

CPU = torch.device("cpu")


def batches(n: int, name: str = "x") -> list:
    stream = generator("features", name)
    images = torch.randint(256, (n, 3, 16, 16), generator=stream).to(torch.uint8)
    labels = torch.randint(3, (n,), generator=stream)
    return list(zip(images.split(16), labels.split(16), strict=True))


def test_features_are_the_pooled_maps_of_each_image_alone() -> None:
    torch.manual_seed(0)
    trunk = ConvNet(widths=(4, 6), strides=(2, 2))
    loader = batches(40)
    found = encode(trunk, lambda x: x - 0.5, loader, [1, 2], precision=nullcontext, device=CPU)
    assert trunk.training  # as it was before
    trunk.eval()
    image, label = loader[1][0][3], loader[1][1][3]
    with torch.no_grad():
        maps = trunk(image[None].float() / 255 - 0.5)
    for pool in (1, 2):
        for stage, stage_map in zip(("stage1", "stage2"), maps, strict=True):
            expected = F.adaptive_avg_pool2d(stage_map, pool)[0]
            torch.testing.assert_close(found.maps[pool][stage][16 + 3], expected, rtol=1e-4, atol=1e-6)
    assert found.labels[16 + 3] == label


def test_small_maps_are_not_blown_up() -> None:
    stage_map = torch.rand(2, 5, 1, 3)
    assert torch.equal(pool_map(stage_map, 4), stage_map)


def test_each_image_is_encoded_once_for_all_probes() -> None:
    trunk = ConvNet(widths=(4,), strides=(2,))
    seen = []
    trunk.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    loaders = {"train": batches(60, "a"), "heldout": batches(20, "b"), "test": batches(30, "c")}
    probes = {"linear": LinearProbe(), "knn": KNNProbe(ks=[3])}
    records, seconds = run_probes(
        {"backbone": trunk}, lambda x: x, probes, loaders, num_classes=3, precision=nullcontext, device=CPU
    )
    assert sum(seen) == 110
    assert [(r["probe"], r["branch"], r["stage"]) for r in records] == [
        ("linear", "backbone", "stage1"),
        ("knn", "backbone", "stage1"),
    ]
    assert seconds.keys() == {"encode_s", "linear_s", "knn_s"}


def share(rank: int, world: int, n: int, batch: int) -> tuple[torch.Tensor, list[int]]:
    """Rows of one process: its contiguous part of each batch, empty parts left out."""
    parts = [rows.tensor_split(world)[rank] for rows in torch.arange(n).split(batch)]
    parts = [part for part in parts if len(part)]
    return torch.cat(parts), [len(part) for part in parts]


def check_gather(rank: int, port: int) -> None:
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    for n, batch in ((10, 4), (9, 4), (7, 3), (4, 4), (2, 2)):
        mine, sizes = share(rank, 2, n, batch)
        assert gather_in_order(mine, sizes).tolist() == list(range(n)), (n, batch)
    dist.destroy_process_group()


def test_two_processes_gather_in_the_order_of_one() -> None:
    from ssl_lightning.launch import free_port

    mp.spawn(check_gather, (free_port(),), nprocs=2)


def test_one_process_gathers_nothing() -> None:
    rows = torch.rand(4, 2)
    assert gather_in_order(rows, [2, 2]) is rows


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_statistics_are_left_alone(training: bool) -> None:
    trunk = ConvNet(widths=(4,), strides=(2,)).train(training)
    before = {name: value.clone() for name, value in trunk.state_dict().items()}
    encode(trunk, lambda x: x, batches(20), [1], precision=nullcontext, device=CPU)
    assert trunk.training == training
    for name, value in trunk.state_dict().items():
        assert torch.equal(value, before[name]), name
