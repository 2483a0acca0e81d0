"""Non-linear probe: against a plain loop, with and without augmentation, selection and enough memory."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_lightning.artifacts.records import Record
from ssl_lightning.data.fake import Fake
from ssl_lightning.probes._map_sources import KeptMaps
from ssl_lightning.probes._runner import run_probes
from ssl_lightning.probes._shared_maps import MapRequest, SharedMaps
from ssl_lightning.probes.nonlinear import NonLinearProbe, Training

TEST = 24


class Backbone(nn.Module):
    """Two stages at a half and a quarter of the image's size; counts its input images."""

    def __init__(self) -> None:
        super().__init__()
        self.images = 0

    def forward(self, x: Tensor) -> list[Tensor]:
        self.images += len(x)
        return [F.avg_pool2d(x, 2), F.avg_pool2d(x, 4)]


def make(**options: Any) -> Fake:
    sizes: dict[str, Any] = {"num_train": 80, "num_test": TEST, "heldout": 20, "batch_size": 8}
    return Fake(image_size=16, **(sizes | options))


def probe_all(data: Fake, backbone: nn.Module, **probes: NonLinearProbe) -> list[Record]:
    data.setup()
    splits = [split for split in ("train", "heldout", "test") if data.label_counts[split]]
    records, _ = run_probes(
        {"backbone": backbone},
        lambda x: x,
        probes,
        {split: data.downstream(split) for split in splits},
        class_names=("a", "b", "c", "d"),
        folder=Path(),
        data=data,
    )
    return records


def probe_once(data: Fake, **options: Any) -> Record:
    (record,) = probe_all(data, Backbone(), nonlinear=NonLinearProbe(**options))
    return record


@torch.no_grad()
def accuracy(network: nn.Module, x: Tensor, labels: Tensor) -> float:
    network.eval()
    return (network(x.float()).argmax(1) == labels).double().mean().item()


class Watched(Training):
    """Records top-1 on held-out maps after each epoch."""

    def __init__(
        self, probe: NonLinearProbe, x: Tensor, labels: Tensor, heldout: tuple[Tensor, Tensor]
    ) -> None:
        network = probe.build(x.shape[1:], int(labels.max()) + 1, 0)
        super().__init__(network, probe.lr, probe.milestones)
        self.heldout, self.by_epoch = heldout, list[float]()
        maps: Any = SimpleNamespace(get=lambda wanted: {"train": (x, labels), "heldout": heldout})
        context: Any = SimpleNamespace(maps=maps, seed=0)
        probe.train([self], KeptMaps(context, probe.maps[0], probe.choice, probe.batch_size))

    def end_epoch(self, figure: float | None) -> None:
        self.by_epoch.append(accuracy(self.network, *self.heldout))
        assert figure in (self.by_epoch[-1], None)
        super().end_epoch(figure)


def test_a_training_that_diverges_is_an_error() -> None:
    x, labels = torch.randn(24, 5, 4, 4), torch.randint(3, (24,))
    with pytest.raises(
        ValueError, match=r"the loss of probe nonlinear is (nan|inf); lower probe\.nonlinear\.lr"
    ):
        Watched(NonLinearProbe(epochs=6, batch_size=12, lr=1e30), x, labels, (x, labels))


@pytest.mark.parametrize("classifier", ["mlp", "conv"])
def test_a_few_images_are_learned_by_heart(classifier: str) -> None:
    torch.manual_seed(0)
    x, labels = torch.randn(24, 5, 4, 4), torch.randint(3, (24,))
    probe = NonLinearProbe(classifier=classifier, epochs=40, batch_size=12, lr=0.02)
    # the held-out maps are the training maps, so the best epoch classifies all of them
    training = Watched(probe, x, labels, (x, labels))
    assert training.by_epoch[0] < max(training.by_epoch) == accuracy(training.network, x, labels) == 1.0


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


@pytest.mark.parametrize("selection", ["heldout", "last", "auto"])
def test_the_weights_of_the_best_or_of_the_last_epoch_are_kept(selection: str) -> None:
    torch.manual_seed(0)
    x, labels = torch.randn(40, 3, 4, 4), torch.randint(2, (40,))
    heldout = torch.randn(30, 3, 4, 4), torch.randint(2, (30,))  # noise: the last epoch is rarely the best
    probe = NonLinearProbe(epochs=12, batch_size=10, selection=selection)
    training = Watched(probe, x, labels, heldout)
    by_epoch = training.by_epoch
    assert by_epoch[-1] < max(by_epoch)
    if selection == "heldout":
        assert training.epoch == by_epoch.index(max(by_epoch)) + 1
        assert accuracy(training.network, *heldout) == max(by_epoch)
    else:
        assert training.epoch == 12
        assert accuracy(training.network, *heldout) == by_epoch[-1]


@pytest.mark.parametrize("labels", ["train", "train+heldout"])
def test_augmented_training_is_a_plain_loop_over_the_loader(labels: str) -> None:
    # full batches only: 60 or 80 images give 7 or 10 batches of 8; two stages train side by side
    options: dict[str, Any] = {"epochs": 3, "batch_size": 8, "selection": "last", "labels": labels}
    probe = NonLinearProbe(stage=["stage1", "stage2"], augment=True, **options)
    records = probe_all(make(crop_padding=3, flip=True), Backbone(), nonlinear=probe)
    assert [record.stage for record in records] == ["stage1", "stage2"]
    for record in records:
        data, place = make(crop_padding=3, flip=True), int(record.stage[-1]) - 1
        data.setup()
        loader = data.labelled(1.0, 8, heldout=labels != "train")
        images, truth = next(iter(data.downstream("test", TEST)))
        test = Backbone()(images / 255)[place]
        network = probe.build(test.shape[1:], 4, 0)
        sgd = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
        for epoch in range(3):
            sgd.param_groups[0]["lr"] = 0.1 * 0.2 ** sum(epoch >= at for at in (1, 2, 3))
            for batch, answers in loader:
                sgd.zero_grad()
                F.cross_entropy(network(Backbone()(batch / 255)[place]), answers).backward()
                sgd.step()
        network.eval()
        right = (network(test).argmax(1) == truth).double().mean().item()
        assert record.value == pytest.approx(right)
        protocol = record.protocol
        assert (protocol["augmented"], protocol["selected_on"], protocol["epoch"]) == (True, "nothing", 3)
        assert protocol["labels"] == (
            {"train": 60, "heldout": 20} if labels == "train" else {"train": 80, "heldout": 0}
        )
        assert (protocol["heldout"] is None) == (labels == "train+heldout")


def test_augmentation_that_changes_nothing_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    data = make(crop_padding=0, flip=False)
    data.setup()
    options: dict[str, Any] = {"epochs": 4, "batch_size": 20}
    augmented = probe_once(data, augment=True, **options)
    places = {int(index): place for place, index in enumerate(data.downstream("train").indices)}

    def batches(self: KeptMaps, epoch: int) -> Any:
        loader = data.labelled(1.0, 20)
        for number in range(3 * epoch, 3 * (epoch + 1)):
            rows = [places[index] for index in loader.batch_indices(number).tolist()]
            yield [self.x[rows]], self.labels[rows]

    monkeypatch.setattr(KeptMaps, "batches", batches)  # the same images, in the order of the loader
    kept = probe_once(data, **options)
    assert augmented.value == kept.value
    assert augmented.protocol == kept.protocol | {"augmented": True}


def test_without_heldout_images_the_last_weights_are_tested() -> None:
    options: dict[str, Any] = {"epochs": 2, "batch_size": 20}
    for augment in (False, True):
        last = probe_once(make(heldout=0), augment=augment, selection="last", **options)
        assert last.protocol["labels"] == {"train": 80, "heldout": 0}
        assert last.protocol["heldout"] is None
        both = probe_once(make(), augment=augment, selection="last", labels="train+heldout", **options)
        assert both.protocol == last.protocol  # the images are the same
        if augment:  # and so is their order
            assert both == last
    with pytest.raises(ValueError, match=r"needs held-out images to select on, and data\.heldout is 0"):
        NonLinearProbe(selection="heldout").check(make(heldout=0).label_counts)


def test_probes_share_a_pass_and_get_what_they_get_alone() -> None:
    options: dict[str, Any] = {"epochs": 2, "batch_size": 20}
    probes = {
        "both": NonLinearProbe(stage=["stage1", "stage2"], **options),
        "conv": NonLinearProbe(classifier="conv", **options),
        "small": NonLinearProbe(pool=2, **options),
    }
    together, once = Backbone(), 104
    records = probe_all(make(), together, **probes)
    shapes = 1  # one image is encoded to find the shapes
    assert together.images == once + shapes
    alone = [
        record for name, probe in probes.items() for record in probe_all(make(), Backbone(), **{name: probe})
    ]
    assert records == alone


@pytest.mark.parametrize(
    ("gigabytes", "passes", "kept"),
    [
        (1.0, 1, "float32"),
        (4.0 * 104 * 3 * (64 + 16) / 1e9, 1, "float32"),  # both stages just fit
        (4.0 * 104 * 3 * (64 + 15) / 1e9, 2, "float32"),  # not together
        (2.0 * 104 * 3 * 64 / 1e9, 2, "bfloat16"),  # the larger one fits only in bfloat16
    ],
)
def test_maps_of_a_pass_fit_in_the_memory(gigabytes: float, passes: int, kept: str) -> None:
    data = make()
    data.setup()
    wanted = [MapRequest(stage, 8, gigabytes) for stage in ("stage1", "stage2", "stage1")]
    loaders = {split: data.downstream(split) for split in ("train", "heldout", "test")}
    maps = SharedMaps(Backbone(), lambda x: x, loaders, 104, wanted, precision=nullcontext, device="cpu")
    for each in wanted[:2]:
        for split, (values, labels) in maps.get(each).items():
            images, truth = (torch.cat(parts) for parts in zip(*loaders[split], strict=True))
            expected = Backbone()(images / 255)[int(each.stage[-1]) - 1]
            assert torch.equal(values, expected.to(values.dtype))
            assert torch.equal(labels, truth)
    assert maps.passes == passes
    assert str(maps.get(wanted[2])["test"][0].dtype) == f"torch.{kept}"
    if passes == 1:
        assert maps.passes == 1
    assert maps._kept == {}  # no request is left


def test_maps_that_do_not_fit_are_halved_and_then_refused_before_any_work() -> None:
    numbers = 104 * 3 * 4 * 4  # of all splits
    small = NonLinearProbe(max_memory_gb=numbers * 2.1 / 1e9, epochs=1)
    assert probe_once(make(), max_memory_gb=numbers * 2.1 / 1e9, epochs=1).protocol["maps"] == "bfloat16"
    shapes, counts = {"stage1": (3, 8, 8), "stage2": (3, 4, 4)}, {"train": 60, "heldout": 20, "test": 24}
    small.check_backbone(shapes, counts)
    with pytest.raises(ValueError, match=r"maps of stage2 take .* GB in bfloat16, and probe\.nonlinear\.max"):
        NonLinearProbe(max_memory_gb=numbers * 1.9 / 1e9).check_backbone(shapes, counts)
    NonLinearProbe(max_memory_gb=numbers * 1.9 / 1e9, pool=2).check_backbone(shapes, counts)
    with pytest.raises(ValueError, match="'stage3'; the backbone has stage1, stage2"):
        NonLinearProbe(stage="stage3").check_backbone(shapes, counts)


def test_epochs_are_those_of_the_paper_unless_given() -> None:
    assert (NonLinearProbe().epochs, NonLinearProbe().milestones) == (50, [20, 40, 45])
    assert NonLinearProbe(classifier="conv").milestones == [35, 70, 85]
    assert NonLinearProbe(epochs=10).milestones == [4, 8, 9]


def _both_ways() -> list[Record]:
    kept = probe_once(make(), epochs=2, max_memory_gb=1e-5)
    fresh = probe_once(make(crop_padding=2, eval_batch_size=9), epochs=2, batch_size=4, augment=True)
    return [kept, fresh]


def _probe_a_share(rank: int, world: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    torch.save(_both_ways(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_get_what_one_gets(tmp_path: Path) -> None:
    mp.spawn(_probe_a_share, (2, str(tmp_path)), nprocs=2)
    alone = _both_ways()
    assert alone[0].protocol["maps"] == "bfloat16"
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt") == alone


@pytest.mark.parametrize(
    "options",
    [
        {"classifier": "svm"},
        {"pool": 0},
        {"epochs": 0},
        {"batch_size": 1},
        {"lr": 0.0},
        {"max_memory_gb": 0},
        {"stage": []},
        {"stage": ["stage1", "stage1"]},
        {"selection": "best"},
        {"labels": "all"},
        {"labels": "train+heldout", "selection": "heldout"},
    ],
)
def test_bad_values_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=rf"probe\.nonlinear\.{next(iter(options))}"):
        NonLinearProbe(**options)


def test_too_few_images_are_refused() -> None:
    with pytest.raises(ValueError, match="needs at least 2 labelled training images; there are 1"):
        NonLinearProbe().check({"train": 1, "heldout": 3, "test": 5})
    NonLinearProbe(selection="last", labels="train+heldout").check({"train": 1, "heldout": 3, "test": 5})
