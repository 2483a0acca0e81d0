"""Embedding: files hold the backbone's features by image name; neighbours match scikit-learn."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn

from ssl_lightning.core.seeding import generator
from ssl_lightning.data.fake import Fake
from ssl_lightning.probes._runner import run_probes
from ssl_lightning.probes.embedding import EmbeddingProbe, nearest, write_parquet


class Backbone(nn.Module):
    """Mean colour, and its square."""

    def forward(self, x: Tensor) -> list[Tensor]:
        colour = x.mean((2, 3), keepdim=True)
        return [colour, colour.square()]


def embed(into: Path, branch: str = "backbone", **options: Any) -> dict[str, np.ndarray]:
    data = Fake(num_train=40, num_test=24, heldout=8, batch_size=4, eval_batch_size=10)
    records, _ = run_probes(
        {branch: Backbone()},
        lambda x: x,
        {"embedding": EmbeddingProbe(**options)},
        {split: data.downstream(split) for split in ("train", "heldout", "test")},
        class_names=("a", "b", "c", "d"),
        folder=into,
        data=data,
    )
    assert records == []
    suffix = "" if branch == "backbone" else f"_{branch}"
    with np.load(into / f"embedding{suffix}.npz", allow_pickle=False) as file:
        return dict(file)


def test_the_test_images_are_written_in_order_with_their_labels(tmp_path: Path) -> None:
    found = embed(tmp_path)
    data = Fake(num_train=40, num_test=24, heldout=8, batch_size=4)
    images = torch.cat([x for x, _ in data.downstream("test")]).float() / 255
    np.testing.assert_allclose(found["features"], images.mean((2, 3)).square(), rtol=1e-5)
    assert found["labels"].tolist() == [i % 4 for i in range(24)]
    assert found["names"].tolist() == [f"test/{i}" for i in range(24)]
    with Image.open(tmp_path / "neighbours.png") as picture:
        assert min(picture.size) > 300
    assert not list(tmp_path.glob(".*"))


def test_any_folder_with_the_names_of_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_LIGHTNING_DATA", str(tmp_path / "cache"))
    shades = {"sub/dark.png": 10, "light.jpg": 250, "mid.png": 128}
    for name, shade in shades.items():
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((20, 30, 3), shade, np.uint8)).save(path)
    (tmp_path / "images/broken.png").write_bytes(b"no picture")
    with pytest.raises(RuntimeError, match="1 of 4 images"):
        embed(tmp_path, folder=str(tmp_path / "images"))
    (tmp_path / "images/broken.png").unlink()
    found = embed(tmp_path, "discriminator", folder=str(tmp_path / "images"), stage="stage1")
    assert "labels" not in found
    assert found["features"].shape == (3, 3)
    for name, shade in shades.items():
        row = found["names"].tolist().index(str(tmp_path / "images" / name))
        np.testing.assert_allclose(found["features"][row], shade / 255, atol=1e-2)


def test_neighbours_are_scikit_learns() -> None:
    x = torch.randn(50, 6, generator=generator("embedding"))
    places, cosine = nearest(x, 7, 5)
    assert places.shape == cosine.shape == (7, 6)
    search = NearestNeighbors(n_neighbors=6, metric="cosine").fit(x.numpy())
    distance, index = search.kneighbors(x[places[:, 0]].numpy())
    assert places.tolist() == index.tolist()
    np.testing.assert_allclose(1 - distance, cosine, atol=1e-6)


def test_fewer_images_than_asked_for() -> None:
    places, _ = nearest(torch.randn(3, 4, generator=generator("few")), 8, 5)
    assert places.shape == (3, 3)
    assert all(sorted(row) == [0, 1, 2] for row in places.tolist())
    # the same image twice: first the query itself, then its double
    places, cosine = nearest(torch.ones(2, 4), 2, 5)
    assert sorted(places.tolist()) == [[0, 1], [1, 0]]
    assert cosine.tolist() == [[1.0, 1.0]] * 2


def test_parquet_round_trip(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    import pyarrow.parquet

    columns = {"names": np.array(["a", "b/ü"]), "features": np.arange(6, dtype=np.float32).reshape(2, 3)}
    columns["labels"] = np.array([3, 1])
    write_parquet(tmp_path / "x.parquet", columns)
    table = pyarrow.parquet.read_table(tmp_path / "x.parquet")
    assert table["names"].to_pylist() == ["a", "b/ü"]
    assert table["labels"].to_pylist() == [3, 1]
    assert table["features"].to_pylist() == columns["features"].tolist()
    assert table["features"].type.list_size == 3


def test_without_pyarrow_there_is_no_parquet_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    embed(tmp_path)
    assert not list(tmp_path.glob("*.parquet"))


@pytest.mark.parametrize("options", [{"pool": 0}, {"queries": 0}, {"neighbours": 0}])
def test_bad_values_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=rf"probe\.embedding\.{next(iter(options))}"):
        EmbeddingProbe(**options)


def test_what_is_not_there_is_refused_beforehand(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="gone, which is not a folder"):
        EmbeddingProbe(folder=str(tmp_path / "gone")).check({})
    with pytest.raises(ValueError, match="'stage7'; the backbone has stage1, stage2"):
        EmbeddingProbe(stage="stage7").check_backbone({"stage1": (3, 4, 4), "stage2": (6, 2, 2)}, {})
