"""Positions of tokens against a loop."""

import math

import pytest

from ssl_lightning.ops.positions import positions


def test_positions_are_those_of_a_loop():
    table = positions(2, 3, 16)
    for row in range(2):
        for column in range(3):
            for number in range(16):
                place = row if number < 8 else column
                angle = place / 10_000 ** ((number % 4) / 4)
                wave = math.sin(angle) if number % 8 < 4 else math.cos(angle)
                assert table[row, column, number].item() == pytest.approx(wave, abs=1e-6)
