"""Colours of tasks: readable on both papers, told apart, and kept."""

from itertools import combinations

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from skimage.color import deltaE_ciede2000, rgb2lab

from ssl_lightning.report.colours import DARK_PAPER, LIGHT_PAPER, OTHERS, TASKS, styles

CONTROLS = ("random", "supervised")
# deuteranopia in linear RGB (Machado et al. 2009)
GREEN_BLIND = np.array(
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
)


def linear(colour: str) -> np.ndarray:
    rgb = np.array(to_rgb(colour))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    """WCAG 2 contrast ratio."""
    dark, light = sorted(float(linear(colour) @ [0.2126, 0.7152, 0.0722]) for colour in (one, other))
    return (light + 0.05) / (dark + 0.05)


def green_blind(colour: str) -> np.ndarray:
    seen = np.clip(GREEN_BLIND @ linear(colour), 0, 1)
    return np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("colour", [colour for colour, _ in [*TASKS.values(), *OTHERS]])
def test_every_colour_is_seen_on_both_papers(colour: str) -> None:
    assert min(contrast(colour, LIGHT_PAPER), contrast(colour, DARK_PAPER)) >= 3


def test_tasks_are_told_apart_by_colour_also_without_green() -> None:
    colours = [colour for task, (colour, _) in TASKS.items() if task not in CONTROLS]
    for one, other in combinations(colours, 2):
        assert deltaE_ciede2000(rgb2lab(to_rgb(one)), rgb2lab(to_rgb(other))) > 20
        assert deltaE_ciede2000(rgb2lab(green_blind(one)), rgb2lab(green_blind(other))) > 9


def test_controls_are_grey() -> None:
    for control in CONTROLS:
        assert np.ptp(to_rgb(TASKS[control][0])) < 0.06


def test_a_task_keeps_its_colour_whatever_stands_beside_it() -> None:
    many = ["random", "jigsaw", "rotation", "own", "rotation", "another"]
    found = styles(many)
    assert found[1].colour == styles(["jigsaw"])[0].colour
    assert [found[2].colour, found[2].line, found[4].line] == [found[4].colour, "-", "--"]
    assert len({style.colour for style in found}) == 5
    assert {style.colour for style in styles(many[::-1])} == {style.colour for style in found}


def test_sixteen_methods_differ_in_colour_or_marker() -> None:
    found = styles([f"method{number}" for number in range(16)])
    assert len({(style.colour, style.marker) for style in found}) == 16
