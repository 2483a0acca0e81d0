"""Non-linear probe: learns a few images by heart, chooses its epoch on held-out maps, minds the memory."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_lightning.artifacts.results import Record
from ssl_lightning.data.fake import Fake
from ssl_lightning.probes.base import run_probes
from ssl_lightning.probes.nonlinear import NonLinearProbe, accuracy

TEST = 24


class Trunk(nn.Module):
    """Two stages: the image at half and at a quarter of its size."""

    def forward(self, x: Tensor) -> list[Tensor]:
        return [F.avg_pool2d(x, 2), F.avg_pool2d(x, 4)]


def make(**options: Any) -> Fake:
    sizes: dict[str, Any] = {"num_train": 80, "num_test": TEST, "heldout": 20, "batch_size": 8}
    return Fake(image_size=16, **(sizes | options))


def probe_once(data: Fake, **options: Any) -> Record:
    (record,), _ = run_probes(
        {"backbone": Trunk()},
        lambda x: x,
        {"nonlinear": NonLinearProbe(**options)},
        {split: data.downstream(split) for split in ("train", "heldout", "test")},
        class_names=("a", "b", "c", "d"),
        folder=Path(),
        data=data,
    )
    return record


@pytest.mark.parametrize("classifier", ["mlp", "conv"])
def test_a_few_images_are_learned_by_heart(classifier: str) -> None:
    torch.manual_seed(0)
    x, labels = torch.randn(24, 5, 4, 4), torch.randint(3, (24,))
    probe = NonLinearProbe(classifier=classifier, epochs=40, batch_size=12, lr=0.02)
    network = probe.build(x.shape[1:], 3, seed=0)
    # held-out maps are the same ones: the best epoch is the one that knows them all
    by_epoch = probe.train(network, x, labels, (x, labels), seed=0)
    assert by_epoch[0] < max(by_epoch) == accuracy(network, x, labels) == 1.0


def test_the_record_and_that_it_is_the_same_again() -> None:
    record = probe_once(make(), stage="stage1", pool=4, epochs=4, batch_size=20)
    assert (record.stage, record.metric, record.n) == ("stage1", "top1", TEST)
    protocol = record.protocol
    assert (protocol["pool"], protocol["dims"], protocol["maps"]) == ([4, 4], 48, "float32")
    assert 1 <= protocol["epoch"] <= 4
    assert protocol["labels"] == {"train": 60, "heldout": 20}
    assert 0 <= record.value <= 1
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    assert record == probe_once(make(seed=1), stage="stage1", pool=4, epochs=4, batch_size=20)
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_weights_of_the_best_epoch_are_kept() -> None:
    torch.manual_seed(0)
    x, labels = torch.randn(40, 3, 4, 4), torch.randint(2, (40,))
    heldout = torch.randn(30, 3, 4, 4), torch.randint(2, (30,))  # noise: the last epoch is rarely the best
    probe = NonLinearProbe(epochs=12, batch_size=10)
    network = probe.build(x.shape[1:], 2, seed=0)
    by_epoch = probe.train(network, x, labels, heldout, seed=0)
    assert by_epoch[-1] < max(by_epoch)
    assert accuracy(network, *heldout) == max(by_epoch)


def test_maps_that_do_not_fit_are_halved_and_then_refused_before_any_work() -> None:
    numbers = 104 * 3 * 4 * 4  # of all splits
    small = NonLinearProbe(max_memory_gb=numbers * 2.1 / 1e9, epochs=1)
    assert probe_once(make(), max_memory_gb=numbers * 2.1 / 1e9, epochs=1).protocol["maps"] == "bfloat16"
    shapes, counts = {"stage1": (3, 8, 8), "stage2": (3, 4, 4)}, {"train": 60, "heldout": 20, "test": 24}
    small.check_trunk(shapes, counts)
    with pytest.raises(ValueError, match=r"maps of stage2 take .* GB in bfloat16, and probe\.nonlinear\.max"):
        NonLinearProbe(max_memory_gb=numbers * 1.9 / 1e9).check_trunk(shapes, counts)
    NonLinearProbe(max_memory_gb=numbers * 1.9 / 1e9, pool=2).check_trunk(shapes, counts)
    with pytest.raises(ValueError, match="'stage3'; the trunk has stage1, stage2"):
        NonLinearProbe(stage="stage3").check_trunk(shapes, counts)


def test_epochs_are_those_of_the_paper_unless_given() -> None:
    assert (NonLinearProbe().epochs, NonLinearProbe().milestones) == (50, [20, 40, 45])
    assert NonLinearProbe(classifier="conv").milestones == [35, 70, 85]
    assert NonLinearProbe(epochs=10).milestones == [4, 8, 9]


def _probe_a_share(rank: int, world: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    torch.save(probe_once(make(), epochs=2, max_memory_gb=1e-5), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_get_what_one_gets(tmp_path: Path) -> None:
    mp.spawn(_probe_a_share, (2, str(tmp_path)), nprocs=2)
    alone = probe_once(make(), epochs=2, max_memory_gb=1e-5)
    assert alone.protocol["maps"] == "bfloat16"
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt") == alone


@pytest.mark.parametrize(
    "options",
    [{"classifier": "svm"}, {"pool": 0}, {"epochs": 0}, {"batch_size": 1}, {"lr": 0.0}, {"max_memory_gb": 0}],
)
def test_bad_values_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=rf"probe\.nonlinear\.{next(iter(options))}"):
        NonLinearProbe(**options)


def test_nothing_to_choose_by_is_refused() -> None:
    with pytest.raises(ValueError, match="there are 300 and 0"):
        NonLinearProbe().check({"train": 300, "heldout": 0, "test": 5})
