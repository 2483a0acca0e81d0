"""Batch loader: order, parts of processes and state, against plain loops and an undisturbed run."""

from __future__ import annotations

import itertools
import pickle

import pytest
import torch
from PIL import Image

from ssl_lightning.data.io.augment import CropFlip, EvalView, TrainView
from ssl_lightning.data.io.loader import BatchLoader
from ssl_lightning.data.io.sources import ArraySource, FileSource, resize

Batch = tuple[torch.Tensor, torch.Tensor]


def array_source(count: int = 40) -> ArraySource:
    """Return images with different pixels everywhere, so that every crop and flip shows."""
    random = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 6, 6, 3), generator=random).byte()
    return ArraySource(images, torch.arange(count), CropFlip(2, flip=True))


def train_loader(source=None, **changes) -> BatchLoader:
    source = source or array_source()
    settings = {"batch_size": 6, "seed": 3, "shuffle": True, "augment": True, "drop_last": True} | changes
    indices = settings.pop("indices", torch.arange(len(source)))
    return BatchLoader(source, indices, **settings)


def same(a, b) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(a, b, strict=True)
    )


def test_batches_are_uint8_channels_last_views_with_their_labels():
    source = array_source()
    images, labels = next(iter(train_loader(source, augment=False)))
    assert images.dtype == torch.uint8
    assert images.is_contiguous(memory_format=torch.channels_last)
    for image, label in zip(images, labels, strict=True):
        assert torch.equal(image, source.images[label].permute(2, 0, 1))


def test_only_the_given_indices_appear_and_unlabelled_is_minus_one():
    source = ArraySource(torch.arange(10).byte()[:, None, None, None].expand(10, 2, 2, 1).contiguous())
    loader = BatchLoader(source, [7, 1, 4], 2, seed=0, shuffle=False)
    batches = list(loader)
    assert [x[:, 0, 0, 0].tolist() for x, _ in batches] == [[7, 1], [4]]
    assert [y.tolist() for _, y in batches] == [[-1, -1], [-1]]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_image_comes_once_an_epoch_whatever_the_world(world):
    source = array_source(42)
    for epoch in range(2):
        seen = []
        for rank in range(world):
            loader = train_loader(source, rank=rank, world_size=world)
            loader.set_epoch(epoch)
            seen += [label for _, labels in loader for label in labels.tolist()]
        assert sorted(seen) == list(range(42))


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_together_see_the_pixels_that_one_process_sees(world):
    source = array_source()
    alone = list(train_loader(source))
    parts = [list(train_loader(source, rank=rank, world_size=world)) for rank in range(world)]
    together = [
        (torch.cat([x for x, _ in batch]), torch.cat([y for _, y in batch]))
        for batch in zip(*parts, strict=True)
    ]
    assert same(together, alone)
    plain = list(train_loader(source, augment=False))
    assert not same(alone, plain)  # augmentation changes pixels


def test_epochs_and_seeds_have_different_orders_and_pixels():
    loader = train_loader()
    epochs = [torch.cat([y for _, y in loader]) for _ in range(2)]
    other = torch.cat([y for _, y in train_loader(seed=4)])
    assert not torch.equal(*epochs)
    assert not torch.equal(epochs[0], other)


@pytest.mark.parametrize("world", [1, 2])
def test_resuming_at_any_position_equals_an_undisturbed_run(world):
    source = array_source(20)

    def make(rank):
        return train_loader(source, rank=rank, world_size=world)

    undisturbed, states = [], []
    loader = make(world - 1)
    for _ in range(3):
        for batch in loader:
            undisturbed.append(batch)
            states.append(pickle.loads(pickle.dumps(loader.state_dict())))  # as in a checkpoint
    assert len(undisturbed) == 9
    for done, state in enumerate(states, 1):
        resumed = make(world - 1)
        resumed.load_state_dict(state)
        assert len(resumed) == 3
        rest: list[Batch] = []
        while len(rest) < 9 - done:
            rest += list(resumed)
        assert same(rest[: 9 - done], undisturbed[done:])
    first = make(0)
    next(iter(first))
    assert first.state_dict() == states[0]  # the state does not depend on the rank


def test_a_pass_that_was_broken_off_is_continued_into_the_next_epoch():
    source = array_source(20)
    loader, undisturbed = train_loader(source), train_loader(source)
    stream = [batch for _ in range(3) for batch in undisturbed]
    got: list[Batch] = []
    for _ in range(4):
        got += itertools.islice(loader, 2)  # like limit_train_batches=2
    assert same(got, stream[:8])
    assert same(list(loader), stream[8:9] + list(undisturbed)[:2])


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"seed": 9}, "seed 3, and this run has 9"),
        ({"batch_size": 8}, "batch_size 6, and this run has 8"),
        ({"indices": range(30)}, "images 40, and this run has 30"),
    ],
)
def test_a_state_of_other_data_is_refused(change, names):
    state = train_loader().state_dict()
    with pytest.raises(ValueError, match=names):
        train_loader(**change).load_state_dict(state)


def test_a_state_of_another_world_size_is_taken():
    loader = train_loader()
    next(iter(loader))
    other = train_loader(rank=1, world_size=2)
    other.load_state_dict(loader.state_dict())
    assert other.position == 1


def test_evaluation_restarts_keeps_no_state_and_never_yields_an_empty_batch():
    source = array_source(7)
    loaders = [
        BatchLoader(source, range(7), 3, seed=0, shuffle=False, rank=rank, world_size=3) for rank in range(3)
    ]
    next(iter(loaders[0]))
    assert loaders[0].state_dict() == {}
    got = [[y.tolist() for _, y in loader] for loader in loaders]
    assert got == [[[0], [3], [6]], [[1], [4]], [[2], [5]]]
    assert [len(loader) for loader in loaders] == [3, 2, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"world_size": 4}, "must divide evenly among 4 processes"),
        ({"batch_size": 64}, "batch_size of train is 64, but there are only 40 images"),
        ({"batch_size": 0}, "must be at least 1"),
        ({"world_size": 7}, "at least their number, 7"),
        ({"rank": 2, "world_size": 2}, "rank is 2; allowed are 0 to 1"),
        ({"drop_last": False, "world_size": 3}, "must divide evenly among 3"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        train_loader(**changes)


def test_padding_as_large_as_the_image_is_refused():
    with pytest.raises(ValueError, match="crop_padding is 6; it must be below the image size 6"):
        ArraySource(torch.zeros(2, 6, 6, 3, dtype=torch.uint8), augment=CropFlip(6, flip=False))


def file_source(folder, workers: int) -> FileSource:
    images = array_source(12).images
    paths = []
    for number, image in enumerate(images):
        paths.append(folder / f"{number}.png")
        Image.fromarray(image.numpy()).resize((20, 16)).save(paths[-1])
    return FileSource(
        paths,
        torch.arange(12),
        channels=3,
        train_view=TrainView(8, (0.2, 1.0)),
        eval_view=EvalView(8, 1.0),
        max_pixels=10_000,
        num_workers=workers,
    )


def test_files_give_the_same_pixels_with_any_number_of_workers_and_processes(tmp_path):
    here, workers = file_source(tmp_path, 0), file_source(tmp_path, 2)
    alone, parallel = train_loader(here), train_loader(workers)
    for _ in range(2):  # workers persist, and the second epoch must differ
        expected = list(alone)
        assert same(list(parallel), expected)
    halves = [list(train_loader(here, rank=rank, world_size=2)) for rank in range(2)]
    together = [(torch.cat([a[0], b[0]]), torch.cat([a[1], b[1]])) for a, b in zip(*halves, strict=True)]
    assert same(together, list(train_loader(here)))
    assert not same(together, expected)  # `expected` is of epoch 1


def test_workers_end_with_their_source(tmp_path):
    source = file_source(tmp_path, 2)
    list(train_loader(source))
    workers = source._workers[True]._loader._iterator._workers
    assert all(worker.is_alive() for worker in workers)
    del source  # at once; objects left to the garbage collector end by a time limit for each worker
    assert not any(worker.is_alive() for worker in workers)


def test_reading_files_leaves_the_global_random_stream_alone(tmp_path):
    source = file_source(tmp_path, 0)
    torch.manual_seed(0)
    list(train_loader(source))
    drawn = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(1))


def test_a_file_that_vanishes_during_the_run_is_named(tmp_path):
    source = file_source(tmp_path, 0)
    (tmp_path / "5.png").unlink()
    with pytest.raises(RuntimeError, match=r"5\.png cannot be read: .*the next start"):
        list(train_loader(source))


def test_resize_keeps_constants_and_native_sizes():
    images = torch.full((3, 8, 8, 1), 77, dtype=torch.uint8)
    assert torch.equal(resize(images, 12), torch.full((3, 12, 12, 1), 77, dtype=torch.uint8))
    assert resize(images, 8) is images
    edge = torch.zeros(1, 8, 8, 1, dtype=torch.uint8)
    edge[:, :4] = 255  # upper half
    assert (resize(edge, 4)[0, 0] > 240).all()
    assert (resize(edge, 4)[0, 3] < 15).all()


def test_batches_larger_than_the_first_and_passes_broken_off(tmp_path):
    shared, alone = file_source(tmp_path, 2), file_source(tmp_path, 0)
    for source in (shared, alone):
        source.found = []
        for size, stop in ((2, 1), (5, 99), (3, 2), (2, 99)):
            loader = BatchLoader(source, torch.arange(len(source)), size, seed=0, shuffle=False)
            source.found += [batch for _, batch in zip(range(stop), loader, strict=False)]
    assert same(shared.found, alone.found)
