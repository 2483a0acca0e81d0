"""The picture of a task."""

import torch

from ssl_lightning.callbacks.panel import COLOURS, draw
from ssl_lightning.tasks.base import Panel


def test_a_panel_is_drawn_pixel_by_pixel_with_its_captions() -> None:
    images = torch.rand(2, 3, 3, 8, 8)
    captions = [["a", "b", "c"], ["d", "e", "f"]]
    right = [[True, False, None], [None, True, False]]
    figure = draw(Panel(images, ["x", "y", "z"], captions, right))
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
    figure = draw(Panel(torch.rand(1, 1, 1, 8, 8), ["x"]))
    assert figure.get_axes()[0].get_images()[0].get_array().shape == (8, 8)
