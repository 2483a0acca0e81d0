"""Distance from a normal distribution on slices: against lightly, an integral, and normal samples."""

import math

import pytest
import torch
from lightly.loss.lejepa_loss import SIGReg
from scipy.integrate import quad

from ssl_lightning.core.seeding import generator
from ssl_lightning.ops.sigreg import draw_slices, epps_pulley


def test_the_statistic_is_that_of_lightly() -> None:
    embedded = 2 * torch.randn(3, 20, 8, generator=generator("embedded")) + 0.5
    slices = draw_slices(16, 8, generator("slices"))
    lightly = SIGReg(num_vectors=16)
    lightly._generate_unit_vectors = lambda *_: slices  # type: ignore[method-assign]
    torch.testing.assert_close(epps_pulley(embedded, slices), lightly(embedded))


@pytest.mark.parametrize("values", [[0.0], [1.5], [-1.0, 1.0], [-2.0, 0.1, 0.4, 3.0]])
def test_one_slice_is_the_integral_over_the_characteristic_function(values: list[float]) -> None:
    def integrand(t: float) -> float:
        real = sum(math.cos(t * x) for x in values) / len(values) - math.exp(-t * t / 2)
        imaginary = sum(math.sin(t * x) for x in values) / len(values)
        return (real**2 + imaginary**2) * math.exp(-t * t / 2)

    expected = len(values) * quad(integrand, -3, 3)[0]
    found = epps_pulley(torch.tensor(values, dtype=torch.float64)[:, None], torch.ones(1, 1).double())
    assert found.item() == pytest.approx(expected, rel=1e-2)  # 17 knots


def test_normal_embeddings_are_nearer_than_scaled_shifted_or_collapsed_ones() -> None:
    normal = torch.randn(512, 8, generator=generator("normal"))
    slices = draw_slices(64, 8, generator("slices"))
    nearest = epps_pulley(normal, slices)
    for other in (2 * normal, 0.5 * normal, normal + 1, 0 * normal, normal.sign()):
        assert epps_pulley(other, slices) > 2 * nearest


def test_slices_have_length_1_and_any_direction() -> None:
    slices = draw_slices(4096, 3, generator("slices"))
    torch.testing.assert_close(slices.norm(dim=0), torch.ones(4096))
    assert slices.mean(1).abs().max() < 0.05  # five times the deviation of a mean
    torch.testing.assert_close(slices @ slices.T / 4096, torch.eye(3) / 3, atol=0.03, rtol=0)
