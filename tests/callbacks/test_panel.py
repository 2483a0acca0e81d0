"""Panel of a task, and the strip over its epochs."""

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.loggers import TensorBoardLogger

from ssl_lightning.callbacks.panel import (
    COLOURS,
    PanelPicture,
    draw_panel,
    read_column,
    strip,
    thin_epochs,
    write_column,
)
from ssl_lightning.tasks.base import Panel


def test_a_panel_is_drawn_pixel_by_pixel_with_its_captions() -> None:
    images = torch.rand(2, 3, 3, 8, 8)
    captions = [["a", "b", "c"], ["d", "e", "f"]]
    right = [[True, False, None], [None, True, False]]
    figure = draw_panel(Panel(images, ["x", "y", "z"], captions, right))
    axes = figure.get_axes()
    assert len(axes) == 6
    for index, axis in enumerate(axes):
        row, column = divmod(index, 3)
        shown = torch.as_tensor(axis.get_images()[0].get_array().data)
        torch.testing.assert_close(shown, images[row, column].permute(1, 2, 0), check_dtype=False)
        assert axis.get_xlabel() == captions[row][column]
        assert axis.xaxis.label.get_color() == COLOURS[right[row][column]]
    assert [axis.get_title() for axis in axes] == ["x", "y", "z", "", "", ""]


def test_grey_images_are_drawn_grey() -> None:
    figure = draw_panel(Panel(torch.rand(1, 1, 1, 8, 8), ["x"]))
    assert figure.get_axes()[0].get_images()[0].get_array().shape == (8, 8)


class Watched(pl.LightningModule):
    """Task with given panels."""

    def __init__(self, panels: list[Panel]) -> None:
        super().__init__()
        self.panels = iter(panels)

    def panel(self, images: torch.Tensor) -> Panel:
        return next(self.panels)


def panels(count: int, watched: int | None = 1, channels: int = 3) -> list[Panel]:
    """Return panels with constant input and target and a changing middle column, with 8-bit values."""
    draws = torch.Generator().manual_seed(0)
    around = torch.randint(0, 256, (2, 3, channels, 5, 7), generator=draws) / 255
    made = []
    for _ in range(count):
        images = around.clone()
        images[:, 1] = torch.randint(0, 256, (2, channels, 5, 7), generator=draws) / 255
        made.append(Panel(images, ["in", "out", "target"], watched=watched))
    return made


def play(callback: PanelPicture, given: list[Panel], first: int = 1, loggers: tuple = ()) -> None:
    """Call the callback at the end of epochs `first`, `first` + 1 and so on."""
    module = Watched(given)
    for epoch in range(first, first + len(given)):
        callback.on_train_epoch_end(trainer_at(epoch - 1, loggers), module)


def trainer_at(epoch: int, loggers: tuple = ()) -> Any:
    """Return what the callback needs of a Trainer in an epoch, from 0."""
    return SimpleNamespace(
        is_global_zero=True,
        strategy=None,
        current_epoch=epoch,
        loggers=loggers,
        datamodule=SimpleNamespace(
            has_downstream=False,
            pretrain_images=100,
            train_sample=lambda n: torch.zeros(n, 3, 5, 7, dtype=torch.uint8),
        ),
        precision_plugin=SimpleNamespace(forward_context=torch.no_grad),
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_the_strip_shows_the_watched_column_of_every_epoch(tmp_path: Path, channels: int) -> None:
    given = panels(3, channels=channels)
    play(PanelPicture(str(tmp_path), images=2), given)
    shown = strip(given[-1], tmp_path / "panels", 3)
    assert shown.columns == ["in", "epoch 1", "epoch 2", "epoch 3", "target"]
    assert shown.images.shape == (2, 5, channels, 5, 7)
    torch.testing.assert_close(shown.images[:, 0], given[0].images[:, 0])
    torch.testing.assert_close(shown.images[:, 4], given[0].images[:, 2])
    for epoch in range(3):
        torch.testing.assert_close(shown.images[:, 1 + epoch], given[epoch].images[:, 1])
        drawn = draw_panel(shown).get_axes()[5 + 1 + epoch].get_images()[0].get_array()  # the second row
        expected = given[epoch].images[1, 1].movedim(0, -1).squeeze(-1)
        np.testing.assert_allclose(drawn, expected.numpy(), atol=1e-6)
    names = {path.name for path in (tmp_path / "panels").iterdir()}
    expected_names = {f"{kind}_000{epoch}.png" for kind in ("epoch", "watched") for epoch in (1, 2, 3)}
    assert names == expected_names
    with (
        Image.open(tmp_path / "panel.png") as newest,
        Image.open(tmp_path / "panels/epoch_0003.png") as third,
    ):
        assert np.array_equal(np.array(newest), np.array(third))
        width = newest.size[0]
    with Image.open(tmp_path / "strip.png") as picture:
        assert picture.size[0] > width


def test_a_resumed_run_shows_earlier_epochs_and_ignores_later_files(tmp_path: Path) -> None:
    given = panels(5)
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    for folder in (undisturbed, killed):
        folder.mkdir()
    play(PanelPicture(str(undisturbed), images=2), given[:3])
    play(PanelPicture(str(killed), images=2), [given[0], given[3], given[4]])  # resumed at epoch 2
    play(PanelPicture(str(killed), images=2), given[1:2], first=2)
    now = strip(given[1], killed / "panels", 2)
    assert now.columns == ["in", "epoch 1", "epoch 2", "target"]
    torch.testing.assert_close(now.images[:, 2], given[1].images[:, 1])
    play(PanelPicture(str(killed), images=2), given[2:3], first=3)
    assert (killed / "strip.png").read_bytes() == (undisturbed / "strip.png").read_bytes()


def test_a_long_run_is_thinned_evenly(tmp_path: Path) -> None:
    given = panels(30)
    for epoch, panel in enumerate(given, 1):
        write_column(panel.images[:, 1], tmp_path / f"watched_{epoch:04d}.png")
    shown = strip(given[-1], tmp_path, 30)
    epochs = [int(title.removeprefix("epoch ")) for title in shown.columns[1:-1]]
    assert len(epochs) == 12
    assert (epochs[0], epochs[-1]) == (1, 30)
    assert {later - earlier for earlier, later in pairwise(epochs)} <= {2, 3}
    for place, epoch in enumerate(epochs, 1):
        torch.testing.assert_close(shown.images[:, place], given[epoch - 1].images[:, 1])
    assert thin_epochs(list(range(12)), 12) == list(range(12))


def test_torn_files_and_other_images_are_left_out(tmp_path: Path) -> None:
    given = panels(3)
    for epoch, panel in enumerate(given, 1):
        write_column(panel.images[:, 1], tmp_path / f"watched_{epoch:04d}.png")
    (tmp_path / "watched_0001.png").write_bytes((tmp_path / "watched_0001.png").read_bytes()[:60])
    write_column(torch.rand(4, 3, 5, 7), tmp_path / "watched_0002.png")
    (tmp_path / "watched_x.png").write_text("not of ours")
    assert strip(given[-1], tmp_path, 3).columns == ["in", "epoch 3", "target"]
    assert read_column(tmp_path / "absent.png", given[0].images.shape) is None


def test_a_frozen_layer_stays_frozen(tmp_path: Path) -> None:
    module, trainer = Watched(panels(1)), trainer_at(0)
    module.norms = torch.nn.ModuleList([torch.nn.BatchNorm2d(3), torch.nn.BatchNorm2d(3).eval()])
    PanelPicture(str(tmp_path), images=2).on_train_epoch_end(trainer, module)
    assert [norm.training for norm in module.norms] == [True, False]


def test_nothing_is_kept_without_keep(tmp_path: Path) -> None:
    plain, unwatched = tmp_path / "plain", tmp_path / "unwatched"
    for folder in (plain, unwatched):
        folder.mkdir()
    play(PanelPicture(str(plain), images=2, keep=False), panels(2))
    assert [path.name for path in plain.iterdir()] == ["panel.png"]
    play(PanelPicture(str(unwatched), images=2), panels(2, watched=None))
    assert {path.name for path in unwatched.iterdir()} == {"panel.png", "panels"}
    assert {path.name for path in (unwatched / "panels").iterdir()} == {"epoch_0001.png", "epoch_0002.png"}


def test_tensorboard_gets_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = TensorBoardLogger(tmp_path / "tb")
    sent: list[tuple[str, int]] = []
    monkeypatch.setattr(logger.experiment, "add_figure", lambda name, figure, step: sent.append((name, step)))
    play(PanelPicture(str(tmp_path), images=2), panels(2), loggers=(logger,))
    assert sent == [("panel", 0), ("strip", 0), ("panel", 1), ("strip", 1)]


def test_no_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="images is 0"):
        PanelPicture(str(tmp_path), images=0)
