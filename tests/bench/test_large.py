"""Measurement of large probes, at a small size."""

from __future__ import annotations

import pytest
import torch

from ssl_lightning.bench.large import main, random_features


def test_features_are_standardised_and_the_same_each_time() -> None:
    x, labels = random_features(20_000, 4, 3, "cpu")
    assert torch.allclose(x.mean(0), torch.zeros(4), atol=0.1)
    assert torch.allclose(x.std(0), torch.ones(4), atol=0.05)
    again, _ = random_features(20_000, 4, 3, "cpu")
    assert torch.equal(x, again)
    assert labels.unique().tolist() == [0, 1, 2]


@pytest.mark.parametrize(("iterations", "end"), [(1, "cut off before it converged"), (200, "converged")])
def test_each_part_prints_time_and_memory_and_the_fit_its_end(
    iterations: int, end: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--samples", "500", "--dims", "8", "--classes", "3", "--queries", "20", "--svm-classes", "2"]
    assert main([*arguments, "--device", "cpu", "--iterations", str(iterations)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["features", "kNN", "fit", "SVMs"]
    assert all("peak" in line for line in lines)
    assert f"iterations, {end}: " in lines[2]
    assert lines[3].startswith("SVMs of 2 classes, converged: ")
