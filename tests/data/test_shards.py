"""Shards against the packed files: pixels, order, damage, errors."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from ssl_lightning.data.folder import Folder
from ssl_lightning.data.io.loader import BatchLoader
from ssl_lightning.data.io.shard_index import ROW, ShardError, entry, read_index
from ssl_lightning.data.io.shards import ShardSource
from ssl_lightning.data.pack.__main__ import main
from ssl_lightning.data.shards import Shards

CLASSES = ("ant", "bee")


def tree(root: Path, count: int, seed: int) -> Path:
    random = np.random.default_rng(seed)
    for number in range(count):
        path = root / CLASSES[number % 2] / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (20, 30, 3), np.uint8)).save(path)
    return root


def packed(images: Path, *options: str, each: int = 4) -> Path:
    out = images.with_name(f"{images.name} packed")
    assert main([str(images), str(out), "--labels", "--samples-per-shard", str(each), *options]) == 0
    return out


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Pack `train` (30 images, 8 shards) and `test` (6 images, 2 shards) in the order of their paths."""
    root = tmp_path_factory.mktemp("shards")
    for name, count in (("train", 30), ("test", 6)):
        packed(tree(root / name, count, len(name)), "--keep-order")
    return root


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """Copy the packed `train`, for a test to damage."""
    return Path(shutil.copytree(made / "train packed", tmp_path / "copy"))


def shards(folder: Path, **settings: Any) -> Shards:
    common: dict[str, Any] = {"pretrain_dir": folder, "image_size": 16, "batch_size": 4, "num_workers": 0}
    given = common | settings
    return Shards(**{key: str(value) if isinstance(value, Path) else value for key, value in given.items()})


def source(folder: Path, window: int = 2, **settings: Any) -> ShardSource:
    return shards(folder, window=window, **settings)._source(read_index(folder))


def loader(images: ShardSource, seed: int = 3, size: int = 5, **settings: Any) -> BatchLoader:
    indices = torch.arange(len(images))
    return BatchLoader(images, indices, size, seed=seed, shuffle=True, augment=True, **settings)


def batches(data: Shards | Folder) -> dict[str, list[tuple[torch.Tensor, torch.Tensor]]]:
    data.setup()
    passes = {split: data.downstream(split) for split in ("train", "heldout", "test")}
    return {name: list(each) for name, each in (passes | {"val": data.val_dataloader()}).items()}


def same(a: list, b: list) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_the_same_images_give_the_pixels_labels_and_splits_of_a_folder(made, tmp_path, channels):
    settings: dict[str, Any] = {"channels": channels, "heldout": 6, "max_labels": 20, "crop_ratio": 0.7}
    folder = Folder(
        pretrain_dir=str(made / "train"),
        train_dir=str(made / "train"),
        test_dir=str(made / "test"),
        root=str(tmp_path),
        image_size=16,
        batch_size=4,
        num_workers=0,
        **settings,
    )
    train, test = made / "train packed", made / "test packed"
    data = shards(train, train_dir=train, test_dir=test, **settings)
    expected, found = batches(folder), batches(data)
    assert expected.keys() == found.keys()
    assert all(same(expected[name], found[name]) for name in expected)
    assert data.spec.class_names == folder.spec.class_names == CLASSES
    assert data.spec.pretrain_labels
    assert data.label_counts == folder.label_counts
    assert torch.equal(data._splits.pretrain, folder._splits.pretrain)
    pretrain = data._loaded.pretrain
    for index in data._splits.pretrain.tolist():  # augmented views too; only the order differs
        for seed in (None, 5):
            assert torch.equal(pretrain.view(index, seed), folder._loaded.pretrain.view(index, seed))


def test_an_epoch_has_each_image_once_and_mixes_some_shards_at_a_time(made):
    images = source(made / "train packed", window=3)
    shard = images.rows["shard"].tolist()
    orders = []
    for epoch in range(3):
        order = loader(images)._order(epoch).tolist()
        assert sorted(order) == list(range(30))
        runs = [shard[index] for index in order]
        while runs:  # by hand: three shards at a time, or the rest, each completely
            now = set(runs[:1])
            length = 1
            while length < len(runs) and len(now | {runs[length]}) <= 3:
                now.add(runs[length])
                length += 1
            assert sorted(runs[:length]) == sorted(s for s in shard if s in now)
            runs = runs[length:]
        orders.append(order)
    assert orders[0] != orders[1] != orders[2]
    assert orders[0] == loader(source(made / "train packed", window=3))._order(0).tolist()
    assert orders[0] != loader(images, seed=4)._order(0).tolist()
    part = torch.tensor([29, 3, 17, 8])
    mixed = images.shuffled(part, torch.Generator().manual_seed(0))
    assert sorted(mixed.tolist()) == [3, 8, 17, 29]


def test_mixing_reaches_every_place_of_a_window(made):
    images = source(made / "train packed", window=8)
    draws = [torch.Generator().manual_seed(seed) for seed in range(400)]
    places = torch.stack([images.shuffled(torch.arange(30), draw) for draw in draws])
    counts = torch.stack([row.bincount(minlength=30) for row in places.T]).double()  # place x image
    statistic = ((counts - 400 / 30) ** 2 / (400 / 30)).sum(1)  # chi squared: mean 29, deviation 7.6
    assert abs(float(statistic.mean()) - 29) < 4


@pytest.mark.parametrize("processes", [1, 2, 5])
def test_processes_share_an_epoch_and_a_loader_resumes_at_any_batch(made, processes):
    images = source(made / "train packed")
    images.labels = torch.arange(30)
    whole = [list(loader(images, size=10, rank=rank, world_size=processes)) for rank in range(processes)]
    seen = torch.cat([labels for each in whole for _, labels in each])
    assert sorted(seen.tolist()) == list(range(30))
    alone = list(loader(images, size=10))
    joined = [tuple(map(torch.cat, zip(*parts, strict=True))) for parts in zip(*whole, strict=True)]
    assert same(joined, alone)
    for stop in (1, 2):
        broken = loader(images, size=10)
        running = iter(broken)
        for _ in range(stop):
            next(running)
        state = json.loads(json.dumps(broken.state_dict()))
        resumed = [loader(images, size=10, rank=rank, world_size=processes) for rank in range(processes)]
        for rank, each in enumerate(resumed):
            each.load_state_dict(state)
            rest = [batch for batch, _ in zip(each, range(len(whole[0]) - stop), strict=False)]
            assert same(rest, whole[rank][stop:])


def test_another_packing_or_window_cannot_be_resumed(made, copy, tmp_path):
    state = loader(source(copy)).state_dict()
    assert loader(source(made / "train packed")).load_state_dict(state) is None  # shards moved
    other = packed(Path(shutil.copytree(made / "train", tmp_path / "train")), "--keep-order", each=7)
    for images in (source(copy, window=3), source(other)):
        with pytest.raises(ValueError, match=r"has layout .* would change the order"):
            loader(images).load_state_dict(state)


def share_of_two_epochs(rank: int, world: int, folder: str, out: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{out}/store{world}", rank=rank, world_size=world
    )
    data = shards(Path(folder), window=2, heldout=6, num_workers=2)
    data.setup()
    data._loaded.pretrain.labels = torch.arange(30)  # labels identify the images of a batch
    loader = data.train_dataloader()
    epochs = [[labels.tolist() for _, labels in loader] for _ in range(2)]
    Path(out, f"{rank}.json").write_text(json.dumps([epochs, data._splits.pretrain.tolist()]))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_with_two_workers_each_see_every_image_once_an_epoch(made, tmp_path):
    folder, out = str(made / "train packed"), str(tmp_path)
    torch.multiprocessing.spawn(share_of_two_epochs, (2, folder, out), nprocs=2)
    (first, images), (second, _) = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert len(images) == 24
    orders = []
    for ours, theirs in zip(first, second, strict=True):
        joined = [a + b for a, b in zip(ours, theirs, strict=True)]
        orders.append(list(chain(*joined)))
        assert sorted(orders[-1]) == images
    assert orders[0] != orders[1]
    torch.multiprocessing.spawn(share_of_two_epochs, (1, folder, out), nprocs=1)
    alone, _ = json.loads((tmp_path / "0.json").read_text())
    assert [list(chain(*epoch)) for epoch in alone] == orders


@pytest.mark.slow
def test_workers_and_reading_ahead_change_nothing(made):
    folder = made / "train packed"

    def epochs(**settings: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
        each = loader(source(folder, **settings))
        return [batch for _ in range(2) for batch in each]

    expected = epochs(read_ahead=False)
    assert same(epochs(), expected)
    assert same(epochs(num_workers=2), expected)


def test_what_goes_to_a_worker_holds_no_table(made):
    images = source(made / "train packed")
    expected = images.view(7, None)
    sent = pickle.dumps(images)
    assert images.rows.nbytes == 30 * ROW.itemsize
    assert bytes(images.rows[3:5].tobytes()) not in sent
    assert torch.equal(pickle.loads(sent).view(7, None), expected)


def test_copies_of_test_images_are_not_trained_on_whatever_they_are_called(made, tmp_path):
    mixed = tree(tmp_path / "mixed", 6, seed=9)
    for place, name in enumerate(("ant/000.png", "ant/002.png", "bee/005.png")):
        shutil.copy(made / "train" / name, mixed / "ant" / f"t{place}.png")
    for place, name in enumerate(("bee/001.png", "ant/004.png")):
        shutil.copy(made / "test" / name, mixed / "bee" / f"u{place}.png")
    data = shards(packed(mixed), train_dir=made / "train packed", test_dir=made / "test packed", heldout=4)
    with pytest.warns(UserWarning, match="2 pretraining images in .*mixed packed are test images"):
        data.setup()
    pretrain, train = data._loaded.pretrain, data._loaded.train
    assert isinstance(pretrain, ShardSource)
    assert isinstance(train, ShardSource)
    names = [name.rpartition(": ")[2] for name in pretrain.paths]
    assert len(names) == 9
    assert not any("/u" in name for name in names)
    overlap = data._loaded.overlap
    assert overlap is not None
    for index, place in enumerate(overlap.tolist()):
        name = Path(train.name(index).rpartition(": ")[2]).stem
        expected = {"000": "t0.png", "002": "t1.png", "005": "t2.png"}.get(name)
        assert (place >= 0) == (expected is not None)
        assert expected is None or names[place].endswith(expected)
        assert place < 0 or pretrain.labels[place] == train.labels[index]
    assert int((pretrain.labels >= 0).sum()) == 3
    with pytest.raises(ValueError, match=r"all images of .* are test images"):
        shards(made / "test packed", train_dir=made / "test packed", test_dir=made / "test packed").setup()


@pytest.mark.parametrize("labelled", ["the same", "others"])
def test_no_copy_of_a_heldout_image_is_pretrained_on(labelled, made, tmp_path):
    once = tree(tmp_path / "once", 6, seed=9)
    twice = tmp_path / "twice"
    for path in once.rglob("*.png"):
        for copy in (path.name, f"copy {path.name}"):
            target = twice / path.parent.name / copy
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    pretrain = packed(twice)
    train = pretrain if labelled == "the same" else packed(once)
    data = shards(pretrain, train_dir=train, test_dir=made / "test packed", heldout=4)
    data.setup()
    assert isinstance(data._loaded.train, ShardSource)
    digests = [data._loaded.pretrain.rows["digest"][i] for i in data._splits.pretrain.tolist()]
    heldout = {data._loaded.train.rows["digest"][i] for i in data._splits.val.tolist()}
    assert heldout
    assert not heldout & set(digests)
    assert len(digests) == 2 * (6 - len(heldout))


def test_folders_that_do_not_fit_are_refused(made, tmp_path):
    train = made / "train packed"
    with pytest.raises(ValueError, match="the probes need both"):
        shards(train, train_dir=train)
    with pytest.raises(ValueError, match=r"data\.window is 0"):
        shards(train, window=0)
    with pytest.raises(FileNotFoundError, match="gone does not exist"):
        shards(tmp_path / "gone").prepare_data()
    with pytest.raises(FileNotFoundError, match=r"has no index\.json: it is not a folder of shards"):
        shards(made / "train").setup()
    with pytest.raises(ValueError, match=r"data\.max_pixels is 599, and a picture in .* has 600"):
        shards(train, max_pixels=599).setup()
    bare = tmp_path / "bare"
    assert main([str(made / "test"), str(bare)]) == 0
    with pytest.raises(ValueError, match="was packed without labels"):
        shards(train, train_dir=train, test_dir=bare).setup()
    shutil.copytree(made / "test", tmp_path / "more")
    shutil.copytree(made / "test" / "ant", tmp_path / "more" / "cow")
    with pytest.raises(ValueError, match=r"only in the second: \['cow'\]"):
        shards(train, train_dir=train, test_dir=packed(tmp_path / "more")).setup()
    assert shards(bare).has_downstream is False


def rewrite(folder: Path, change: Any) -> None:
    """Change the table of a folder, and update the index to match."""
    table = np.load(folder / "images.npy")
    changed = change(table)
    np.save(folder / "images.npy", table if changed is None else changed)
    index = json.loads((folder / "index.json").read_bytes())
    index["table"] = entry(folder / "images.npy")
    (folder / "index.json").write_text(json.dumps(index))


def test_shards_that_are_missing_truncated_or_replaced_are_named(made, copy, tmp_path):
    shard = copy / "shard-000002.tar"
    whole = shard.read_bytes()
    for change, message in (
        (shard.unlink, "is missing"),
        (lambda: shard.write_bytes(whole[:-1]), "was truncated or replaced"),
        (lambda: os.mkfifo(shard), "was truncated or replaced"),
    ):
        shard.unlink(missing_ok=True)
        if message != "is missing":
            change()
        with pytest.raises(ShardError, match=rf"shard-000002\.tar .*{message}"):
            shards(copy).setup()
    shard.unlink()
    other = (made / "train packed" / "shard-000003.tar").read_bytes()
    shard.write_bytes(other[: len(whole)].ljust(len(whole), b"\0"))
    images = source(copy)
    assert images.view(0, None).shape == (3, 16, 16)
    place = images.rows["shard"].tolist().index(2)
    with pytest.raises(RuntimeError, match=r"shard-000002\.tar: ant/\d+\.png cannot be read: its .* --check"):
        images.view(place, None)
    os.truncate(shard, 1000)  # during a run
    with pytest.raises(RuntimeError, match=r"shard-000002\.tar: .* differ from the packed ones"):
        images.view(place + 1, None)
    shard.unlink()
    fresh = pickle.loads(pickle.dumps(images))  # as in a worker that has no open files
    with pytest.raises(RuntimeError, match=r"shard-000002\.tar: .* cannot be read: .*No such file"):
        fresh.view(place, None)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("shard", 8, r"has a shard number outside 0\.\.7"),
        ("shard", 2**32 - 1, r"has a shard number outside 0\.\.7"),
        ("offset", 10**6, "ends beyond the end of its shard"),
        ("offset", 2**64 - 1, "ends beyond the end of its shard"),
        ("size", 0, r"has a size outside 1\.\."),
        ("size", 2**32 - 1, r"has a size outside 1\.\."),
        ("size", 2**30, "ends beyond the end of its shard"),
        ("name", 2**63, r"beyond the end of names\.txt"),
        ("label", 2, "a label outside the 2 classes"),
        ("label", -1, "a label outside the 2 classes"),
    ],
)
def test_a_table_that_points_elsewhere_is_refused(copy, field, value, message):
    def change(table: np.ndarray) -> None:
        table[field][11] = value

    rewrite(copy, change)
    with pytest.raises(ShardError, match=rf"images\.npy: image 11 .*{message}"):
        shards(copy).setup()


def test_a_broken_or_malicious_index_is_refused(copy):
    path = copy / "index.json"
    good = json.loads(path.read_bytes())

    def changed(key: str, value: Any, of: str | None = None) -> bytes:
        index = json.loads(json.dumps(good))
        (index["shards"][1] if of == "shards" else index[of] if of else index)[key] = value
        return json.dumps(index).encode()

    cases = {
        b"": "is not a valid index",
        b"[1]": "is not a valid index",
        b"[" * 100_000: "is not a valid index",
        path.read_bytes()[:-40]: "is not a valid index",
        changed("format", "other 9"): "format is 'other 9'",
        changed("name", "../shard-000001.tar", "shards"): "invalid entry",
        changed("name", "/etc/passwd", "shards"): "invalid entry",
        changed("name", "x.npy", "table"): "invalid entry",
        changed("bytes", -5, "shards"): "invalid entry",
        changed("bytes", 1e999, "shards"): "invalid entry",
        changed("images", 2**70): r"images\.npy is not a table of",
        changed("images", True): "counts must be integers",
        changed("class_names", ["a", "a"]): "must be a list of different names",
        changed("class_names", [1, 2]): "must be a list of different names",
        changed("sha256", "0" * 64, "table"): r"images\.npy differs from",
    }
    for content, message in cases.items():
        path.write_bytes(content)
        with pytest.raises(ShardError, match=message):
            read_index(copy)
    path.write_text(json.dumps(good))
    rewrite(copy, lambda table: table.astype(object).reshape(-1))  # a pickle is not read
    with pytest.raises(ShardError, match=r"images\.npy is not a table of images: .*Python objects"):
        read_index(copy)
    with path.open("ab") as file:
        file.truncate(1 << 40)  # sparse
    with pytest.raises(ShardError, match="not a regular file of at most"):
        read_index(copy)


def test_pictures_stay_bounded_whatever_the_index_says(copy):
    index = json.loads((copy / "index.json").read_bytes())
    index["largest"] = 1
    (copy / "index.json").write_text(json.dumps(index))
    data = shards(copy, max_pixels=599)
    with pytest.raises(ValueError, match="30 x 20 pixels are more than max_pixels 599"):
        data.setup()


def test_shards_of_any_pixels_are_checked_before_work(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 20, 30, 4), np.uint8)
    for kind in ("four", "twelve"):
        (tmp_path / kind / "ant").mkdir(parents=True)
    for number, each in enumerate(pixels):
        tifffile.imwrite(tmp_path / "four" / "ant" / f"{number}.tif", each, photometric="rgb")
        wide = each[..., 0].astype(np.uint16) * 16
        Image.fromarray(wide).save(tmp_path / "twelve" / "ant" / f"{number}.png")
    four, twelve = (packed(tmp_path / kind, "--keep-order") for kind in ("four", "twelve"))
    assert np.array_equal(source(four, channels=4).picture(0).permute(1, 2, 0), pixels[0])
    with pytest.raises(ValueError, match=r"ant/0\.tif: it has 4 channels; give data\.channels=4"):
        source(four)
    with pytest.warns(UserWarning, match=r"a sample: 8 of 8 images .* from 0 to 4080"):
        source(twelve, channels=1)
    read = source(twelve, channels=1, value_range=[0, 4080]).picture(0)[0]
    assert np.array_equal(read, pixels[0, ..., 0])
