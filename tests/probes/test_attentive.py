"""Attentive probe: against a plain loop of `nn.MultiheadAttention`, invariances, and a class in one cell."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_lightning.artifacts.records import Record
from ssl_lightning.core.seeding import generator, stream_seed
from ssl_lightning.data.fake import Fake
from ssl_lightning.networks.attentive import AttentiveClassifier, attend_all
from ssl_lightning.networks.convnet import ConvNet
from ssl_lightning.networks.vit import create_small_vit
from ssl_lightning.probes._runner import run_probes
from ssl_lightning.probes.attentive import AttentiveProbe, channel_standardisation, scores

Splits = Mapping[str, tuple[Tensor, Tensor]]


def noise(n: int = 40, channels: int = 6, classes: int = 3) -> Splits:
    """Return random maps whose first channel tells a little about the class."""
    stream = torch.Generator().manual_seed(0)
    made = {}
    for split, size in {"train": n, "heldout": n // 2, "test": n // 2}.items():
        labels = torch.arange(size) % classes
        maps = torch.randn(size, channels, 2, 3, generator=stream) * 3 + 1
        maps[:, 0] += labels[:, None, None]
        made[split] = maps, labels
    return made


def in_one_cell(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return maps with one marked cell at a random place, which alone tells the class; all means are equal.

    Two cells have +1 or -1 in channel 0, with opposite signs. The marked one (channel 1) is positive in the
    one class and negative in the other.
    """
    stream = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 2
    maps = torch.zeros(n, 3, 16)
    places = torch.rand(n, 16, generator=stream).argsort(1)[:, :2]
    sign = 2.0 * labels - 1
    rows = torch.arange(n)
    maps[rows, 0, places[:, 0]], maps[rows, 0, places[:, 1]] = sign, -sign
    maps[rows, 1, places[:, 0]] = 1.0
    maps[:, 2] = torch.randn(n, 16, generator=stream)
    return maps.unflatten(2, (4, 4)), labels


def test_logits_of_all_classifiers_are_those_of_each_alone() -> None:
    torch.manual_seed(0)
    classifiers = [AttentiveClassifier(12, (3, 2), 4, 5) for _ in range(3)]
    for each in classifiers:
        nn.init.normal_(each.attention.in_proj_bias)
        nn.init.normal_(each.query)
    maps = torch.randn(7, 12, 3, 2)
    together = attend_all(classifiers, maps.flatten(2))
    alone = torch.stack([each(maps) for each in classifiers])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    weight = torch.randn_like(alone)
    for name, _ in classifiers[1].named_parameters():
        of = classifiers[1].get_parameter(name)
        mine, theirs = (
            torch.autograd.grad((logits * weight).sum(), of, retain_graph=True)
            for logits in (together, alone)
        )
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


def test_training_is_a_plain_loop_of_multihead_attention() -> None:
    splits, decays = noise(), [0.0, 0.5]
    probe = AttentiveProbe(heads=4, lrs=[0.01], weight_decays=decays, epochs=3, batch_size=8)
    records, _ = probe.evaluate("stage2", splits, 3, seed=5)
    x, labels = splits["train"]
    mean, std = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True, correction=0)
    tokens = {split: ((maps - mean) / std).flatten(2).mT for split, (maps, _) in splits.items()}
    figures = []
    for decay in decays:
        with torch.random.fork_rng():
            torch.manual_seed(stream_seed(5, "attentive", "stage2"))
            query = nn.Parameter(torch.randn(1, 1, 6) * 0.02)
            attention, linear = nn.MultiheadAttention(6, 2, batch_first=True), nn.Linear(6, 3)

        def logits(x: Tensor, query=query, attention=attention, linear=linear) -> Tensor:
            return linear(attention(query.expand(len(x), 1, 6), x, x)[0][:, 0])

        parameters = [query, *attention.parameters(), *linear.parameters()]
        adam, steps = torch.optim.AdamW(parameters, lr=0.01, weight_decay=decay), 0
        for epoch in range(3):
            order = torch.randperm(40, generator=generator(5, "attentive", "stage2", epoch))
            for rows in order.split(8):
                # 15 steps; the warm-up takes two of them
                factor = (steps + 1) / 2 if steps < 2 else 0.5 * (1 + math.cos(math.pi * (steps - 2) / 13))
                adam.param_groups[0]["lr"] = 0.01 * factor
                adam.zero_grad()
                F.cross_entropy(logits(tokens["train"][rows]), labels[rows]).backward()
                adam.step()
                steps += 1
        right = {s: (logits(tokens[s]).argmax(1) == splits[s][1]).double().mean().item() for s in splits}
        figures.append(right)
    chosen = max(figures, key=lambda right: right["heldout"])
    (record,) = records
    assert record.protocol["heads"] == 2  # 4 does not divide the 6 channels
    assert list(record.protocol["candidates"].values()) == [right["heldout"] for right in figures]
    assert (record.heldout, record.value) == (chosen["heldout"], chosen["test"])
    assert record.heldout > 0.4


def test_the_order_of_the_cells_does_not_matter() -> None:
    splits, order = noise(), torch.tensor([3, 0, 5, 1, 4, 2])
    mixed = {s: (x.flatten(2)[:, :, order].unflatten(2, (2, 3)), y) for s, (x, y) in splits.items()}
    probe = AttentiveProbe(epochs=1, batch_size=8)
    _, fitted = probe.evaluate("stage1", splits, 3, 0)
    head = AttentiveClassifier(**{key: value for key, value in fitted.head.items() if key != "_target_"})
    head.load_state_dict({key.removeprefix("head."): value for key, value in fitted.weights.items()})
    one, other = (scores([head], each["test"][0]) for each in (splits, mixed))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(one[0], head(splits["test"][0]).detach(), rtol=1e-4, atol=1e-5)


def test_a_class_in_one_cell_is_found_which_an_average_hides() -> None:
    splits = {split: in_one_cell(400, seed) for seed, split in enumerate(("train", "heldout", "test"))}
    averages = splits["train"][0].mean((2, 3))[:, 0]
    assert averages.abs().max() < 1e-6
    probe = AttentiveProbe(heads=1, lrs=[0.01, 0.05], weight_decays=[0.0], epochs=30, batch_size=50)
    (record,), _ = probe.evaluate("stage1", splits, 2, 0)
    averaged = {s: (x.mean((2, 3), keepdim=True), y) for s, (x, y) in splits.items()}
    (mean,), _ = probe.evaluate("stage1", averaged, 2, 0)
    assert record.value > 0.95
    assert mean.value < 0.6


@pytest.mark.parametrize("kept", [torch.float32, torch.bfloat16])
def test_channels_are_standardised(kept: torch.dtype) -> None:
    maps = (torch.randn(1500, 3, 2, 2, generator=torch.Generator().manual_seed(0)) * 2 + 5).to(kept)
    maps[:, 2] = 7.0
    shift, scale = channel_standardisation(maps)
    whole = maps.double()
    torch.testing.assert_close(shift.double(), whole.mean((0, 2, 3)))
    torch.testing.assert_close(1 / scale[:2].double(), whole.std((0, 2, 3), correction=0)[:2])
    assert scale[2] == 0


def probed(backbone: nn.Module, folder: Path, seed: int = 0, **options: Any) -> tuple[list[Record], Any]:
    data = Fake(num_train=80, num_test=24, heldout=20, image_size=16, batch_size=8)
    data.setup()
    kept: dict[str, Any] = {}
    records, _ = run_probes(
        {"backbone": backbone},
        lambda x: x,
        {"attentive": AttentiveProbe(**{"epochs": 3, "batch_size": 16} | options)},
        {split: data.downstream(split) for split in ("train", "heldout", "test")},
        class_names=("a", "b", "c", "d"),
        folder=folder,
        data=data,
        seed=seed,
        keep=lambda name, branch, fitted: kept.update({name: fitted}),
    )
    return records, kept["attentive"]


@pytest.mark.parametrize("kind", ["convolutional", "transformer"])
def test_every_stage_is_probed_the_same_way_again(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone: nn.Module = ConvNet(widths=(4, 8), strides=(2, 2))
    if kind == "transformer":
        backbone = create_small_vit(width=8, depth=2, heads=2, stages=2)
    before = torch.random.get_rng_state()
    records, fitted = probed(backbone, tmp_path)
    assert torch.equal(before, torch.random.get_rng_state())
    assert [record.stage for record in records] == ["stage1", "stage2"]
    assert records[0].protocol["labels"] == {"train": 60, "heldout": 20}
    assert len(records[0].protocol["candidates"]) == 4
    assert probed(backbone, tmp_path)[0] == records
    assert probed(backbone, tmp_path, seed=1)[0] != records
    assert [record.stage for record in probed(backbone, tmp_path, stages=[2])[0]] == ["stage2"]
    # the stored classifier has the reported accuracy
    data = Fake(num_train=80, num_test=24, heldout=20, image_size=16, batch_size=8)
    data.setup()
    head = AttentiveClassifier(**{key: value for key, value in fitted.head.items() if key != "_target_"})
    head.load_state_dict({key.removeprefix("head."): value for key, value in fitted.weights.items()})
    right = 0
    with torch.no_grad():
        for images, labels in data.downstream("test"):
            maps = backbone.eval()(images.float() / 255)[int(fitted.record.stage[-1]) - 1]
            right += int((head(maps).argmax(1) == labels).sum())
    assert right / 24 == pytest.approx(fitted.record.value, abs=1 / 24)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool": 0}, "probe.attentive.pool is 0"),
        ({"heads": 0}, "probe.attentive.heads is 0"),
        ({"epochs": 0}, "probe.attentive.epochs is 0"),
        ({"batch_size": 0}, "probe.attentive.batch_size is 0"),
        ({"stages": []}, r"probe.attentive.stages is \[\]; at least one"),
        ({"stages": [1, 1]}, r"stages is \[1, 1\]; .* none twice"),
        ({"lrs": [0.0]}, r"probe.attentive.lrs is \[0.0\]; .* above 0"),
        ({"weight_decays": [-1.0]}, r"weight_decays is \[-1.0\]; .* none below 0"),
        ({"max_memory_gb": 0}, "max_memory_gb is 0; it must be above 0"),
    ],
)
def test_bad_values_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AttentiveProbe(**options)


def test_a_backbone_that_does_not_fit_is_refused() -> None:
    counts = {"train": 1000, "heldout": 100, "test": 100}
    with pytest.raises(ValueError, match=r"'stage3'; the backbone has stage1"):
        AttentiveProbe(stages=[3]).check_backbone({"stage1": (4, 8, 8)}, counts)
    with pytest.raises(ValueError, match=r"stage1 take 0.6 GB .*probe.attentive.pool \(8\)"):
        AttentiveProbe(max_memory_gb=0.5).check_backbone({"stage1": (4000, 8, 8)}, counts)
