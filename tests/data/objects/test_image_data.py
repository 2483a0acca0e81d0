"""Any images of a user: folders, arrays, torch and Hugging Face data sets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torchvision
from PIL import Image
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset
from torchvision.transforms import v2

from ssl_lightning.data.objects.image_data import ImageData

N, SIDE = 40, 16
PIXELS = np.random.default_rng(0).integers(0, 256, (N, SIDE, SIDE, 3), np.uint8)
GREY = np.ascontiguousarray(PIXELS[..., 0])
TEST = np.random.default_rng(1).integers(0, 256, (9, SIDE, SIDE, 3), np.uint8)
LABELS = np.arange(N) % 3
NAMES = ["ant", "bee", "cat"]


class Items(Dataset):
    """A torch data set of any items."""

    def __init__(self, items: list[Any], **attributes: Any) -> None:
        self.items = items
        self.reads = 0
        vars(self).update(attributes)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        self.reads += 1
        return self.items[index]


class HuggingFace:
    """What a `datasets.Dataset` offers: columns, features, rows as dicts."""

    def __init__(self, images: list[Any], labels: list[int], key: str = "image") -> None:
        self.rows = [{key: image, "label": label} for image, label in zip(images, labels, strict=True)]
        self.column_names = [key, "label"]
        self.features = {key: SimpleNamespace(), "label": SimpleNamespace(names=NAMES)}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, at: int | str) -> Any:
        return [row[at] for row in self.rows] if isinstance(at, str) else self.rows[at]


@pytest.mark.parametrize(("count", "batch"), [(36, 32), (5, 4), (2, 1)])
def test_the_default_batch_fits_few_images(count: int, batch: int, caplog: pytest.LogCaptureFixture) -> None:
    data = ImageData(PIXELS[:count])
    data.setup()
    assert (data.batch_size, len(next(iter(data.train_dataloader()))[0])) == (batch, batch)
    assert len(next(iter(data.val_dataloader()))[0]) == max(1, count // 10)
    assert caplog.messages[0].startswith(f"data.batch_size is 64; {batch} is used, since image_data has")


class Stream(IterableDataset):
    def __iter__(self):
        return iter(PIXELS)


def pil(pixels: np.ndarray) -> list[Image.Image]:
    return [Image.fromarray(image) for image in pixels]


def chw(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def mapped(pixels: np.ndarray, folder: Path) -> np.ndarray:
    np.save(folder / "images.npy", pixels)
    return np.load(folder / "images.npy", mmap_mode="r")


def written(root: Path, pixels: np.ndarray, labels: np.ndarray) -> Path:
    """Write PNG files, one folder per class."""
    for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        path = root / NAMES[label] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return root


def ready(*sources: Any, **options: Any) -> ImageData:
    data = ImageData(*sources, **({"batch_size": 4, "num_workers": 0} | options))
    data.prepare_data()
    data.setup()
    return data


def test_truth_values_are_labels_0_and_1():
    truth = LABELS > 0
    data = ready(PIXELS, (PIXELS, truth), (TEST, truth[:9].tolist()))
    assert data.spec.class_names == ("0", "1")
    tested = torch.cat([labels for _, labels in data.downstream("test")])
    assert tested.tolist() == truth[:9].astype(int).tolist()


def images_of(loader) -> torch.Tensor:
    return torch.cat([images for images, _ in loader])


def labels_of(loader) -> list[int]:
    return torch.cat([labels for _, labels in loader]).tolist()


SOURCES: dict[str, Callable[[Path], Any]] = {
    "array": lambda _: PIXELS,
    "flipped view": lambda _: PIXELS[:, ::-1][:, ::-1],
    "mapped file": lambda folder: mapped(PIXELS, folder),
    "array of floats": lambda _: PIXELS / 255,
    "tensor": lambda _: chw(PIXELS),
    "tensor of floats": lambda _: chw(PIXELS).float() / 255,
    "half floats": lambda _: torch.from_numpy(PIXELS).half() / 255,
    "list of PIL": lambda _: pil(PIXELS),
    "dataset of PIL": lambda _: Items(pil(PIXELS)),
    "dataset with labels": lambda _: Items([(image, 1) for image in pil(PIXELS)]),
    "dataset with other things": lambda _: Items([(image, {"box": 1}, 2) for image in PIXELS]),
    "tensors": lambda _: TensorDataset(chw(PIXELS) / 255),
    "subset": lambda _: Subset(TensorDataset(chw(PIXELS).repeat(2, 1, 1, 1)), range(N)),
    "dicts": lambda _: Items([{"image": image} for image in chw(PIXELS)]),
    "hugging face": lambda _: HuggingFace(pil(PIXELS), LABELS.tolist(), "img"),
    "folder": lambda root: written(root / "files", PIXELS, 0 * LABELS),
}


@pytest.mark.filterwarnings("error:The given NumPy array")
@pytest.mark.parametrize("kind", SOURCES)
def test_each_source_gives_the_pixels_that_it_holds(kind, tmp_path):
    data = ready(SOURCES[kind](tmp_path), heldout=0, crop=False, root=str(tmp_path))
    images = images_of(data.unlabelled())
    assert images.dtype == torch.uint8
    assert torch.equal(images, chw(PIXELS))
    assert (data.spec.channels, data.spec.image_size) == (3, SIDE)
    assert not data.has_downstream
    assert data.spec.class_names is None


@pytest.mark.parametrize(
    "source",
    [GREY, GREY[..., None], torch.from_numpy(GREY[:, None]) / 255, pil(GREY), Items(list(GREY))],
    ids=["array", "axis", "floats", "PIL", "dataset"],
)
def test_grey_images_keep_their_channel_or_get_three(source):
    data = ready(source, heldout=0)
    assert data.spec.channels == 1
    assert torch.equal(images_of(data.unlabelled()), torch.from_numpy(GREY)[:, None])
    assert torch.equal(
        images_of(ready(source, heldout=0, channels=3).unlabelled()), chw(GREY[..., None].repeat(3, 3))
    )


def test_a_folder_of_grey_files_is_grey(tmp_path):
    folder = written(tmp_path / "files", GREY, 0 * LABELS)
    assert ready(folder, root=str(tmp_path)).spec.channels == 1
    Image.fromarray(PIXELS[0]).save(folder / "colour.png")
    assert ready(folder, root=str(tmp_path)).spec.channels == 3


def test_colour_becomes_grey_as_pillow_does_it():
    expected = np.stack([np.asarray(image.convert("L")) for image in pil(PIXELS)])
    got = images_of(ready(PIXELS, heldout=0, channels=1).unlabelled())[:, 0]
    assert (got.int() - torch.from_numpy(expected).int()).abs().max() <= 1


@pytest.mark.parametrize("max_memory", [1 << 20, 0])
def test_images_of_several_sizes_are_cut_and_resized_as_torchvision_does_it(max_memory):
    random = np.random.default_rng(2)
    pictures = [
        Image.fromarray(random.integers(0, 256, (20 + 2 * i, 32, 3), np.uint8)).resize((64, 40 + 4 * i))
        for i in range(12)
    ]
    data = ready(pictures, heldout=0, image_size=24, max_memory=max_memory, crop=False)
    for got, picture in zip(images_of(data.unlabelled()), pictures, strict=True):
        square = v2.CenterCrop(min(picture.size))(v2.functional.pil_to_tensor(picture))
        resized = v2.Resize(24, v2.InterpolationMode.BICUBIC, antialias=True)(square)
        assert (got.int() - resized.int()).abs().max() <= 1
    with pytest.raises(ValueError, match=r"have 40 x 64 pixels; give image_size"):
        ready(pictures)
    squares = [picture.resize((side, side)) for picture, side in zip(pictures, [24] * 11 + [20], strict=True)]
    with pytest.raises(ValueError, match=r"source\[11\] has 20 x 20 pixels, and the first image 24 x 24"):
        ready(squares)


def test_an_array_that_is_not_square_is_cut_to_its_centre():
    wide = np.concatenate([PIXELS[:, :, :3] * 0, PIXELS, PIXELS[:, :, :4] * 0], axis=2)
    assert torch.equal(images_of(ready(wide, heldout=0, image_size=SIDE).unlabelled()), chw(PIXELS))


LABELLED: dict[str, Callable[[Path, np.ndarray, np.ndarray], Any]] = {
    "pair": lambda _, x, y: (x, y),
    "pair of lists": lambda _, x, y: (pil(x), [NAMES[label] for label in y]),
    "tensors": lambda _, x, y: TensorDataset(chw(x), torch.from_numpy(y)),
    "items": lambda _, x, y: Items(list(zip(pil(x), y.tolist(), strict=True)), classes=NAMES),
    "hugging face": lambda _, x, y: HuggingFace(pil(x), y.tolist()),
    "folder": lambda root, x, y: written(root / str(len(x)), x, y),
}


@pytest.mark.parametrize("max_memory", [1 << 20, 0])
@pytest.mark.parametrize("kind", LABELLED)
def test_labels_and_splits(kind, max_memory, tmp_path):
    make = LABELLED[kind]
    train, test = make(tmp_path, PIXELS, LABELS), make(tmp_path, TEST, LABELS[:9])
    data = ready(train, train, test, max_memory=max_memory, crop=False, root=str(tmp_path))
    assert data.spec.class_names == (
        ("0", "1", "2") if kind in ("pair", "tensors") else ("ant", "bee", "cat")
    )
    assert data.spec.pretrain_labels
    counts = {split: len(labels_of(data.downstream(split))) for split in ("train", "heldout", "test")}
    assert counts == {"train": 36, "heldout": 4, "test": 9}
    wanted = {image.tobytes(): int(label) for image, label in zip(PIXELS, LABELS, strict=True)}
    wanted |= {image.tobytes(): int(label) for image, label in zip(TEST, LABELS[:9], strict=True)}
    seen: dict[str, set[bytes]] = {}
    for split in ("train", "heldout", "test"):
        keys = [image.permute(1, 2, 0).numpy().tobytes() for image in images_of(data.downstream(split))]
        assert [wanted[key] for key in keys] == labels_of(data.downstream(split))
        seen[split] = set(keys)
    assert not seen["train"] & seen["heldout"]
    pretrain = {image.permute(1, 2, 0).numpy().tobytes() for image in images_of(data.unlabelled())}
    assert pretrain == seen["train"]  # held-out images are not pretrained on


def test_copies_are_found_by_content():
    with pytest.warns(UserWarning, match="9 images of source are test images"):
        data = ready(np.concatenate([TEST, PIXELS[::-1]]), (PIXELS.copy(), LABELS), (TEST, LABELS[:9]))
    pretrain = {image.numpy().tobytes() for image in images_of(data.unlabelled())}
    heldout = {image.numpy().tobytes() for image in images_of(data.downstream("heldout"))}
    assert (len(pretrain), len(heldout)) == (36, 4)
    assert not pretrain & heldout
    with pytest.raises(ValueError, match="all images of source are test images"):
        ready(TEST, (PIXELS, LABELS), (TEST, LABELS[:9]))
    with pytest.warns(UserWarning, match="9 images of labelled_train are also test images"):
        ready(PIXELS, (PIXELS[:20] // 2, LABELS[:20]), (PIXELS[:9] // 2, LABELS[:9]))


@pytest.mark.parametrize("kind", ["other arrays", "the labelled ones", "labelled twice"])
def test_no_copy_of_a_heldout_image_is_pretrained_on(kind):
    pixels, labels = PIXELS[9:], LABELS[9:]
    twice = np.concatenate([pixels, pixels])
    given = (twice, np.concatenate([labels, labels])) if kind == "the labelled ones" else (pixels, labels)
    if kind == "labelled twice":
        given = (np.concatenate([pixels, pixels[:3]]), np.concatenate([labels, labels[:3]]))
    source = given[0] if kind == "the labelled ones" else twice
    data = ready(source, given, (TEST, LABELS[:9]))
    pretrain = [image.numpy().tobytes() for image in images_of(data.unlabelled())]
    heldout = {image.numpy().tobytes() for image in images_of(data.downstream("heldout"))}
    assert heldout
    assert not heldout & set(pretrain)
    assert len(pretrain) == 2 * (len(pixels) - len(heldout))  # all other copies stay


def test_the_images_of_one_array_are_not_trained_and_tested_on():
    with (
        pytest.warns(UserWarning, match="9 images of source are test images"),
        pytest.warns(UserWarning, match="9 images of labelled_train are also test images"),
    ):
        data = ready(PIXELS, (PIXELS, LABELS), (PIXELS[:9].copy(), LABELS[:9]))
    pretrain = {image.numpy().tobytes() for image in images_of(data.unlabelled())}
    tested = {image.numpy().tobytes() for image in images_of(data.downstream("test"))}
    heldout = {image.numpy().tobytes() for image in images_of(data.downstream("heldout"))}
    assert not pretrain & tested
    assert not pretrain & heldout
    assert len(pretrain) == N - len(tested | heldout)
    given = dict(zip((image.numpy().tobytes() for image in chw(PIXELS)), LABELS, strict=True))
    for pixels, found in data.unlabelled():
        assert [given[each.numpy().tobytes()] for each in pixels] == found.tolist()
    with pytest.raises(ValueError, match="all images of source are test images"):
        ready(PIXELS, (PIXELS.copy(), LABELS), (PIXELS, LABELS))


def test_probe_images_take_size_and_channels_of_the_source():
    data = ready(GREY, (PIXELS[:, :8, :8], LABELS), (pil(TEST), LABELS[:9]))
    assert images_of(data.downstream("train")).shape == (36, 1, SIDE, SIDE)
    assert images_of(data.downstream("test")).shape == (9, 1, SIDE, SIDE)


def test_a_large_dataset_is_read_by_workers_and_gives_the_same_evaluation_images():
    items = Items(list(zip(pil(PIXELS), LABELS.tolist(), strict=True)), targets=LABELS.tolist())
    test = Items(list(zip(pil(TEST), LABELS[:9].tolist(), strict=True)))
    large = ready(items, items, test, max_memory=0, crop=False, num_workers=2)
    assert items.reads < 2 + N  # size, channels, statistics, but no pass for the labels
    small = ready(items, items, test, crop=False)
    for split in ("train", "heldout", "test"):
        assert torch.equal(images_of(large.downstream(split)), images_of(small.downstream(split)))
        assert labels_of(large.downstream(split)) == labels_of(small.downstream(split))
    first, second = (images_of(large.train_dataloader()) for _ in range(2))
    assert torch.equal(first, second)  # seeded


def test_a_small_dataset_is_read_once():
    items = Items(pil(PIXELS))
    data = ready(items)
    for _ in range(3):
        images_of(data.train_dataloader())
    assert items.reads == N + 1


def test_crop_and_flip_change_training_images_only():
    plain = ready(PIXELS, crop=False, flip=False)
    both = ready(PIXELS)
    assert torch.equal(images_of(plain.unlabelled()), images_of(both.unlabelled()))
    known = {image.numpy().tobytes() for image in chw(PIXELS)}
    assert all(image.numpy().tobytes() in known for image in images_of(plain.train_dataloader()))
    assert not all(image.numpy().tobytes() in known for image in images_of(both.train_dataloader()))


def test_a_mix_of_folders_and_arrays_is_told_that_nothing_is_compared(tmp_path):
    folder = written(tmp_path / "a", PIXELS, LABELS)
    with pytest.warns(UserWarning, match="source is not compared with labelled_train and test: give three"):
        ready(folder, (PIXELS, LABELS), (TEST, LABELS[:9]), root=str(tmp_path))


def test_torchvision_data_sets_work(tmp_path):
    folder = torchvision.datasets.ImageFolder(str(written(tmp_path / "a", PIXELS, LABELS)))
    data = ready(folder, folder, (TEST, LABELS[:9]))
    assert data.spec.class_names == tuple(folder.classes)
    numbers = data.downstream("train").indices.tolist()
    assert [folder.targets[i] for i in numbers] == labels_of(data.downstream("train"))


class Recorder(pl.LightningModule):
    """A small network that keeps the batches it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * SIDE * SIDE, 1)
        self.seen: list[bytes] = []
        self.validated = 0

    def training_step(self, batch, _):
        self.seen.append(batch[0].numpy().tobytes())
        return self.layer(batch[0].flatten(1) / 255).square().mean()

    def validation_step(self, batch, _):
        self.validated += len(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def trainer(folder: Path, **options: Any) -> pl.Trainer:
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(default_root_dir=folder, accelerator="cpu", num_sanity_val_steps=0, **quiet, **options)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("max_memory", [1 << 20, 0])
def test_a_stock_trainer_fits_validates_and_resumes_in_the_same_order(max_memory, tmp_path):
    def data() -> ImageData:
        return ImageData(pil(PIXELS), batch_size=9, max_memory=max_memory, num_workers=0)

    whole, resumed = Recorder(), Recorder()
    saved = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=3, save_top_k=-1)
    trainer(tmp_path, max_epochs=2, callbacks=[saved]).fit(whole, data())
    assert len(whole.seen) == len(set(whole.seen)) == 2 * 4  # 36 images, shuffled and augmented anew
    assert whole.validated == 2 * 4
    path = tmp_path / "step=3.ckpt"
    trainer(tmp_path, max_epochs=2, enable_checkpointing=False).fit(resumed, data(), ckpt_path=path)
    assert resumed.seen == whole.seen[3:]


pair = (PIXELS, LABELS)
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "empty array": (lambda: ready(PIXELS[:0]), "source has 0 images; at least 2"),
    "one image": (lambda: ready(pil(PIXELS[:1])), "source has 1 images; at least 2"),
    "single picture": (lambda: ready(PIXELS[0]), r"\(16, 16, 3\), as a single image has"),
    "video": (lambda: ready(PIXELS[None]), "as videos have"),
    "video items": (lambda: ready([PIXELS, PIXELS]), "single frames of a video"),
    "five channels": (lambda: ready(np.zeros((9, 8, 8, 5), np.uint8)), "1, 3 or 4 channels"),
    "ambiguous": (lambda: ready(np.zeros((9, 3, 8, 3), np.uint8)), "axis 1 or axis 3"),
    "floats to 255": (lambda: ready(PIXELS.astype(np.float32)), "floats from 0 to 255; .* divide by 255"),
    "normalised": (lambda: ready(PIXELS / 127.5 - 1), "from -1 to 1; .* undo a normalisation"),
    "not a number": (lambda: ready(PIXELS * np.nan), "floats from nan to nan"),
    "normalised items": (lambda: ready(list(chw(PIXELS) / 50.0 - 2)), r"source\[0\] has floats from -2"),
    "integers": (
        lambda: ready(PIXELS.astype(np.int64)),
        "pixels of torch.int64 from 0 to 255; allowed are uint8",
    ),
    "objects": (lambda: ready(np.array([["a"]])), "source has values of <U1"),
    "names of files": (lambda: ready(["a.png", "b.png"]), r"source\[0\] is of type str"),
    "dicts without image": (lambda: ready([{"x": 1}] * 2), "dict with the keys x; one must be image"),
    "stream": (lambda: ready(Stream()), "source is a Stream; allowed are a folder"),
    "loader": (lambda: ready(DataLoader(Items(pil(PIXELS)))), "give its data set, loader.dataset"),
    "dict of splits": (lambda: ready({"train": PIXELS}), r"a dict of train; give one .* data\['train'\]"),
    "number": (lambda: ready(3), "source is a int; allowed are a folder"),
    "mixed channels": (lambda: ready(pil(GREY[:2]) + pil(PIXELS[:2])), r"source\[2\] has 3 channels"),
    "channels": (lambda: ready(PIXELS, channels=2), "data.channels is 2"),
    "large batch": (lambda: ready(PIXELS, batch_size=50), "batch_size is 50; .* 1 to 36"),
    "memory": (lambda: ready(PIXELS, max_memory=-1), "max_memory is -1"),
    "no test": (lambda: ready(PIXELS, pair), "test is missing; the probes need both"),
    "no training labels": (lambda: ready(PIXELS, None, pair), "labelled_train is missing"),
    "without labels": (lambda: ready(PIXELS, PIXELS, pair), r"without labels; give a pair"),
    "items without labels": (lambda: ready(PIXELS, pil(PIXELS), pair), "must be .image, label."),
    "fewer labels": (lambda: ready(PIXELS, (PIXELS, LABELS[:7]), pair), "40 images and 7 labels"),
    "floats as labels": (lambda: ready(PIXELS, (PIXELS, LABELS / 2), pair), "label 0.0; allowed are int"),
    "one-hot labels": (lambda: ready(PIXELS, (PIXELS, np.eye(N)), pair), "allowed are integers from 0"),
    "labels from 1": (lambda: ready(PIXELS, (PIXELS, LABELS + 1), pair), "no image of 0"),
    "negative labels": (lambda: ready(PIXELS, (PIXELS, LABELS - 1), pair), "labels from -1 to 1"),
    "one class": (lambda: ready(PIXELS, (PIXELS, LABELS * 0), (TEST, [0] * 9)), "one class only"),
    "unknown class": (lambda: ready(PIXELS, pair, (TEST, [3] * 9)), "test has a label 3"),
    "unknown name": (
        lambda: ready(PIXELS, (PIXELS, ["a", "b"] * 20), (TEST, ["c"] * 9)),
        "test has a label 'c', which no image of labelled_train has; its classes are a, b",
    ),
    "names and numbers": (lambda: ready(PIXELS, pair, (TEST, ["c"] * 9)), "both must be integers"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.filterwarnings("ignore")
def test_bad_input_gets_one_sentence(case):
    call, message = REFUSED[case]
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 250


def test_bad_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"folder .*gone does not exist; source is this folder"):
        ImageData(str(tmp_path / "gone"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no image"):
        ready(tmp_path / "empty", root=str(tmp_path / "cache"))
    written(tmp_path / "files", PIXELS, 0 * LABELS)
    Image.fromarray(PIXELS[0, :9]).save(tmp_path / "files" / "wide.png")
    with pytest.raises(ValueError, match=r"source wide.png has 9 x 16 pixels, and the first image"):
        ready(tmp_path / "files", root=str(tmp_path / "cache"))


BANDS = np.random.default_rng(2).integers(0, 256, (N, SIDE, SIDE, 4), np.uint8)
TWELVE = np.random.default_rng(3).integers(0, 4096, (N, SIDE, SIDE)).astype(np.uint16)


def first_image(data: ImageData) -> np.ndarray:
    return data._loaded.pretrain.images[0].numpy()


@pytest.mark.parametrize(
    "source",
    [
        BANDS,
        np.ascontiguousarray(BANDS.transpose(0, 3, 1, 2)),
        torch.from_numpy(BANDS).float() / 255,
        [Image.fromarray(each) for each in BANDS],
        list(BANDS),
    ],
    ids=["channels last", "channels first", "floats", "pictures", "list"],
)
def test_four_channels_enter_as_they_are(source):
    data = ready(source, channels=4)
    assert data.spec.channels == 4
    assert np.array_equal(first_image(data), BANDS[0])
    assert next(iter(data.train_dataloader()))[0].shape[1] == 4


@pytest.mark.parametrize("channels", [1, 3])
def test_four_channels_do_not_become_fewer(channels):
    for source, name in ((BANDS, "source"), (list(BANDS), r"source\[0\]")):
        with pytest.raises(ValueError, match=rf"{name} has images of 4 channels, and channels is {channels}"):
            ready(source, channels=channels)
    with pytest.raises(ValueError, match=r"source\[0\]: it has 3 channels, and data\.channels is 4"):
        ready(pil(PIXELS), channels=4)


@pytest.mark.parametrize(
    "source", [TWELVE, list(TWELVE), [Image.fromarray(each) for each in TWELVE], TWELVE.astype(np.float32)]
)
def test_a_value_range_rescales_wide_pixels(source):
    data = ready(source, value_range=(0, 4095))
    assert np.array_equal(first_image(data)[..., 0], np.round(TWELVE[0] / 4095 * 255))


@pytest.mark.parametrize("max_memory", [1 << 20, 0])
def test_what_pictures_hold_is_said_once_with_numbers(max_memory):
    pictures = [Image.fromarray(each) for each in TWELVE]
    with pytest.warns(
        UserWarning, match=rf"source: {N} of {N} images have .* from {TWELVE.min()} to"
    ) as said:
        ready(pictures, max_memory=max_memory)
    assert len(said) == 1
    with pytest.warns(UserWarning, match=rf"{N} of {N} images have transparent pixels"):
        ready([Image.fromarray(each) for each in BANDS], max_memory=max_memory)


def test_files_of_four_channels_and_of_twelve_bits(tmp_path):
    for number in range(6):
        (tmp_path / "twelve").mkdir(exist_ok=True)
        Image.fromarray(TWELVE[number]).save(tmp_path / "twelve" / f"{number}.png")
        (tmp_path / "four").mkdir(exist_ok=True)
        Image.fromarray(BANDS[number]).save(tmp_path / "four" / f"{number}.png")
    options = {"root": str(tmp_path / "cache"), "crop": False, "flip": False, "heldout": 1, "batch_size": 5}
    wide = ready(tmp_path / "twelve", value_range=(0, 4095), **options)
    assert wide.spec.channels == 1
    found = {image.numpy().tobytes() for image in images_of(wide.train_dataloader())}
    assert found < {np.round(each / 4095 * 255).astype(np.uint8).tobytes() for each in TWELVE[:6]}
    four = ready(tmp_path / "four", channels=4, **options)
    found = {image.numpy().tobytes() for image in images_of(four.train_dataloader())}
    assert found < {np.ascontiguousarray(each.transpose(2, 0, 1)).tobytes() for each in BANDS[:6]}
