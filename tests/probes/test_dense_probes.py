"""Shared parts of the dense probes: order of the images, schedule, kept state, processes."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ssl_lightning.artifacts.records import Record
from ssl_lightning.probes import _dense
from ssl_lightning.probes._dense import own_batches, rank_and_world, read_split, spread_over
from ssl_lightning.probes._plan import BatchPart, TrainingPlan
from tests.probes import test_detection, test_segmentation
from tests.test_train import results_of


def plan(**options: object) -> TrainingPlan:
    values = {
        "name": "x",
        "steps": 10,
        "batch_size": 3,
        "optimizer": "sgd",
        "lr": 1.0,
        "backbone_lr": 0.1,
        "weight_decay": 0.0,
        "evals": 5,
    }
    return TrainingPlan(**values | options)  # type: ignore[arg-type]


def test_each_epoch_is_a_new_order_of_whole_batches() -> None:
    batches = list(plan(steps=6).batches(10, seed=1))
    assert [len(batch) for batch in batches] == [3] * 6
    for epoch in (batches[:3], batches[3:]):
        assert len(set(torch.cat(epoch).tolist())) == 9
    assert not torch.equal(torch.cat(batches[:3]), torch.cat(batches[3:]))
    again = list(plan(steps=6).batches(10, seed=1))
    assert all(torch.equal(a, b) for a, b in zip(batches, again, strict=True))
    assert not torch.equal(batches[0], next(iter(plan().batches(10, seed=2))))


def test_the_best_state_on_heldout_images_is_kept() -> None:
    head, backbone = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    figures = iter([0.1, 0.7, 0.7, 0.2, 0.3])
    states: list[tuple[Tensor, Tensor]] = []

    def evaluate() -> dict[str, float]:
        states.append((head.weight.clone(), backbone.weight.clone()))
        return {"figure": next(figures)}

    kept, protocol = plan().train(
        head,
        backbone,
        lambda batch: backbone(head(torch.ones(1, 1))).sum(),
        evaluate,
        images=6,
        seed=0,
        choose_by="figure",
    )
    assert kept == {"figure": 0.7}
    assert protocol["chosen_step"] == 4  # the first of equal ones
    assert protocol["candidates"] == {"2": 0.1, "4": 0.7, "6": 0.7, "8": 0.2, "10": 0.3}
    assert torch.equal(head.weight, states[1][0])
    assert torch.equal(backbone.weight, states[1][1])
    assert not torch.equal(head.weight, states[2][0])


def test_the_rate_rises_and_falls_to_zero() -> None:
    factors = [plan(steps=100)._factor(step) for step in range(101)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[5] == 1.0
    assert factors[100] == pytest.approx(0.0)
    assert factors[5:] == sorted(factors[5:], reverse=True)


def test_slices_and_spreads_cover() -> None:
    assert [list(range(9))[part] for part in own_batches(9, 4)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]
    assert spread_over(3, 5) == [0, 1, 2]
    assert spread_over(100, 4) == [0, 25, 50, 75]


def _split(rank: int, world: int) -> list[tuple[Tensor, list[dict[str, Tensor]]]]:
    """Return one process's share of two global batches of 4 and 3 images, image i filled with i."""
    shares = []
    for batch in (range(4), range(4, 7)):
        mine = torch.tensor_split(torch.tensor(list(batch)), world)[rank].tolist()
        images = torch.tensor(mine, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
        shares.append((images, [{"boxes": torch.full((i % 3, 4), float(i))} for i in mine]))
    return shares


def _collects(rank: int, world: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    images, targets = read_split(_split(rank, world), "cpu")  # type: ignore[arg-type]
    masks = [(x, x[:, 0].long()) for x, _ in _split(rank, world)]
    same, ids = read_split(masks, "cpu")
    torch.save((images, targets, same, ids), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_every_process_has_the_whole_split_in_order(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_collects, (2, str(tmp_path)), nprocs=2)
    alone, alone_targets = read_split(_split(0, 1), "cpu")  # type: ignore[arg-type]
    assert alone[:, 0, 0, 0].tolist() == list(range(7))
    for rank in range(2):
        images, targets, same, ids = torch.load(tmp_path / f"{rank}.pt")
        assert torch.equal(images, alone)
        assert torch.equal(same, alone)
        assert torch.equal(ids, alone[:, 0])
        assert all(torch.equal(a["boxes"], b["boxes"]) for a, b in zip(targets, alone_targets, strict=True))


# Options of a probe; three processes share batches of 4 as 2, 1, 1 images, and batches of 2 as 1, 1, 0
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "segmentation, maps kept": (test_segmentation, {}),
    "segmentation, encoded at every step": (test_segmentation, {"cache_gb": 0.0}),
    "segmentation, small batches": (test_segmentation, {"batch_size": 2}),
    "segmentation, batch norm": (test_segmentation, {"batch_size": 6, "hidden": 4}),
    "segmentation, batch norm in uneven parts": (test_segmentation, {"hidden": 4}),
    "segmentation, batch norm of a share in uneven parts": (
        test_segmentation,
        {"batch_size": 6, "hidden": 4, "fractions": [1 / 3], "draws": 1},
    ),
    "segmentation, fine-tuned": (test_segmentation, {"finetune": True, "batch_size": 2}),
    "detection": (test_detection, {}),
    "detection, small batches": (test_detection, {"batch_size": 2}),
    "detection, fine-tuned": (test_detection, {"finetune": True}),
}


def _probe(case: str, folder: Path) -> tuple[list[Record], dict[str, Tensor], int]:
    """Run a probe on this process's share of the images; return its records, head, and images encoded."""
    module, options = CASES[case]
    rank, world = rank_and_world()
    data = {
        split: [tuple(each[_part(len(each), rank, world)] for each in batch) for batch in batches]
        for split, batches in module.splits().items()
    }
    heads, encoded = [], []
    net = module.backbone()
    net.register_forward_hook(lambda net, inputs, maps: encoded.append(len(inputs[0])))

    def train(self: TrainingPlan, head: nn.Module, *args: Any, **keywords: Any) -> Any:
        found = plain(self, head, *args, **keywords)
        heads.append(head.state_dict())
        return found

    plain = TrainingPlan.train
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingPlan, "train", train)
        few = {"steps": 4, "evals": 1, "optimizer": "sgd", "lr": 0.01, "pictures": 2}
        return module.run(data, folder, net, **few | options), heads[0], sum(encoded)


def _part(count: int, rank: int, world: int) -> slice:
    mine = torch.arange(count).tensor_split(world)[rank].tolist()
    return slice(mine[0], mine[-1] + 1) if mine else slice(0, 0)


def _probes(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    torch.save({case: _probe(case, Path(folder)) for case in CASES}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def of_three(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Return the results of all cases in each of three processes."""
    folder = tmp_path_factory.mktemp("three")
    torch.multiprocessing.spawn(_probes, (3, str(folder)), nprocs=3)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(3)]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_three_processes_share_the_work_and_have_the_results_of_one(
    tmp_path: Path, of_three: list[dict[str, Any]], case: str
) -> None:
    records, head, encoded = _probe(case, tmp_path)
    for shared_records, shared_head, _ in (each[case] for each in of_three):
        assert {r.metric: r.value for r in shared_records} == pytest.approx(
            {r.metric: r.value for r in records}, abs=1e-6
        )
        assert shared_records == of_three[0][case][0]
        for name, weight in head.items():
            torch.testing.assert_close(shared_head[name], weight, rtol=1e-3, atol=1e-5, msg=name)
    # more: one image tells each of two further processes the size, and repeats fill four small batches
    assert encoded <= sum(each[case][2] for each in of_three) <= encoded + 2 + 4


def test_a_process_without_images_repeats_the_first_one_and_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parts = []
    for rank in range(3):
        monkeypatch.setattr(_dense, "rank_and_world", lambda rank=rank: (rank, 3))
        parts.append(BatchPart.of(1, torch.tensor([7, 8]), split=True))
    assert [(batch.mine.tolist(), batch.weight) for batch in parts] == [([7], 1.0), ([8], 1.0), ([7], 0.0)]
    assert BatchPart.of(1, torch.tensor([7, 8]), split=False).mine.tolist() == [7, 8]


def save_small_sets(cache: Path) -> None:
    """Save CIFAR-10 and Fashion-MNIST in the format of the cache, with 20 images per split."""
    draw = np.random.default_rng(0)
    for name, shape in (("cifar10", (32, 32, 3)), ("fashion_mnist", (28, 28, 1))):
        (cache / name).mkdir(parents=True)
        for split in ("train", "test"):
            np.save(cache / name / f"{split}_images.npy", draw.integers(0, 256, (20, *shape), dtype=np.uint8))
            np.save(cache / name / f"{split}_labels.npy", np.arange(20) % 10)


@pytest.mark.slow
@pytest.mark.parametrize(("probe", "targets"), [("segmentation", "masks"), ("detection", "boxes")])
def test_a_run_of_two_processes_has_the_figures_of_one(tmp_path: Path, probe: str, targets: str) -> None:
    root = Path(__file__).parent.parent.parent
    save_small_sets(tmp_path / "cache")
    small = [
        "data.num_train=40",
        "data.num_test=11",
        "data.heldout=9",
        "data.batch_size=8",
        "data.objects=[0,3]",
    ]
    options = [f"probe.{probe}.{key}" for key in ("steps=4", "evals=2", "batch_size=4")]
    results = []
    for devices in (1, 2):
        command = [sys.executable, str(root / "train.py"), f"output_dir={tmp_path}", f"name={devices}"]
        command += ["task=random", "data=scenes", f"data.targets={targets}", f"probe=[{probe}]", "logger=[]"]
        command += [
            "trainer=cpu",
            "trainer.precision=32-true",
            f"trainer.devices={devices}",
            *small,
            *options,
        ]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "SSL_LIGHTNING_DATA": str(tmp_path / "cache")}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        folder = tmp_path / f"random/scenes/convnet/{devices}"
        results.append(results_of(folder))
        assert (folder / f"{probe}_backbone.png").stat().st_size > 1000
    for one, two in zip(results[0].probes, results[1].probes, strict=True):
        assert two.value == pytest.approx(one.value, abs=1e-3)
    assert len(results[0].probes) == (1 if probe == "segmentation" else 3)
