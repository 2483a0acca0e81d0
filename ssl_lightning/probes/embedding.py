"""Embedding probe: the features of images in one file, and a picture of nearest neighbours."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from ssl_lightning.artifacts.records import Record
from ssl_lightning.core.atomic_files import atomic_file
from ssl_lightning.core.seeding import generator
from ssl_lightning.features.encode import ClassLabels, encode
from ssl_lightning.probes.base import BackboneProbe, ImageLoader, Images, ProbeContext


class EmbeddingProbe(BackboneProbe):
    """Write `embedding.npz` (and `embedding.parquet` if pyarrow is installed) and `neighbours.png`.

    The files hold `names`, `features` `(N, D)` float32, and `labels` if every image has one. Branches other
    than "backbone" add their name to the file names. The probe returns no records. The files after training
    replace the files of the untrained backbone.

    Args:
        folder: Any folder of images. None takes the test images, or the pretraining images if the data have
            no labels.
        stage: Such as "stage2"; None for the deepest.
        pool: The stage map is average-pooled to at most pool x pool cells.
        queries: Rows of the picture.
        neighbours: Nearest images by cosine in each row.

    Raises:
        ValueError: A number is out of range, or `folder` is not a folder.
    """

    targets = ("none",)
    selects = False

    def __init__(
        self,
        *,
        folder: str | None = None,
        stage: str | None = None,
        pool: int = 1,
        queries: int = 8,
        neighbours: int = 5,
    ) -> None:
        for key, value in {"pool": pool, "queries": queries, "neighbours": neighbours}.items():
            if value < 1:
                raise ValueError(f"probe.embedding.{key} is {value}; it must be at least 1")
        self.folder, self.stage, self.pool = folder, stage, pool
        self.queries, self.neighbours = queries, neighbours

    def check(self, counts: Mapping[str, int]) -> None:
        if self.folder is not None and not Path(self.folder).expanduser().is_dir():
            raise ValueError(f"probe.embedding.folder is {self.folder}, which is not a folder")

    def check_images(self, data: Images) -> None:
        if self.folder is not None:
            data.images_in(self.folder)  # decodes every file once, and remembers the good ones

    def run(self, context: ProbeContext) -> list[Record]:
        loader = self.images(context)
        features = encode(
            context.backbone,
            context.probe_input,
            {"images": ClassLabels(loader)},
            [self.pool],
            precision=context.precision,
            device=context.device,
        )
        if torch.distributed.is_initialized() and torch.distributed.get_rank() > 0:
            return []  # one process writes
        x = features.get("images", self.stage or features.stages[-1], self.pool).cpu()
        labels = features.labels["images"].cpu()
        suffix = "" if context.branch == "backbone" else f"_{context.branch}"
        columns = {"names": np.array(loader.image_names), "features": x.numpy()}
        if (labels >= 0).all():
            columns["labels"] = labels.numpy()
        write_npz(context.folder / f"embedding{suffix}.npz", columns)
        if importlib.util.find_spec("pyarrow") is not None:
            write_parquet(context.folder / f"embedding{suffix}.parquet", columns)
        if len(x) > 1:
            places, cosine = nearest(x, self.queries, self.neighbours)
            pictures = loader.take(places.flatten()).unflatten(0, places.shape)  # (Q, 1 + k, C, H, W)
            names = [context.class_names[y] if y >= 0 else "" for y in labels[places.flatten()].tolist()]
            with atomic_file(context.folder / f"neighbours{suffix}.png") as temporary:
                draw_nearest(pictures, cosine, names).savefig(temporary, dpi=110, format="png")
        return []

    def images(self, context: ProbeContext) -> ImageLoader:
        """Return the loader of the images to embed, as `folder` says."""
        if self.folder is not None:
            return context.data.images_in(self.folder)
        return context.data.downstream("test") if context.data.has_downstream else context.data.unlabelled()


def nearest(x: Tensor, queries: int, neighbours: int) -> tuple[Tensor, Tensor]:
    """Find the nearest neighbours of some of the images.

    Args:
        x: `(N, D)` features of 2 images or more.
        queries: Number of query images, a fixed draw; all images if there are fewer.
        neighbours: Neighbours of each query, itself excluded; all others if there are fewer.

    Returns:
        Positions `(Q, 1 + k)` int64, the query first, then the nearest first; and cosines of the same shape.
    """
    unit = F.normalize(x.float())
    asked = torch.randperm(len(x), generator=generator("fixed", "queries"))[:queries]
    cosine = unit[asked] @ unit.T  # (Q, N)
    cosine[torch.arange(len(asked)), asked] = torch.inf  # puts the query itself first
    best = cosine.topk(min(neighbours + 1, len(x)), dim=1)
    return best.indices, best.values.clamp(max=1)


def draw_nearest(pictures: Tensor, cosine: Tensor, names: Sequence[str]) -> Figure:
    """Draw a row for each query: the image, then its neighbours with their cosine and class.

    Args:
        pictures: `(Q, 1 + k, C, H, W)` uint8.
        cosine: `(Q, 1 + k)`.
        names: Class of each picture, row by row; "" without a class.
    """
    rows, columns = pictures.shape[:2]
    figure = Figure(figsize=(1.3 * columns + 0.2, 1.5 * rows + 0.3), layout="constrained")
    pixels = pictures.movedim(2, -1).numpy()
    for place, axis in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        row, column = divmod(place, columns)
        shown = pixels[row, column]
        axis.imshow(shown[..., 0] if shown.shape[-1] == 1 else shown[..., :3], cmap="gray", vmin=0, vmax=255)
        axis.set_xticks([])
        axis.set_yticks([])
        likeness = f" {cosine[row, column]:.3f}" if column else ""
        axis.set_xlabel(f"{names[place]}{likeness}".strip(), fontsize=7)
        axis.spines[:].set(linewidth=0.5 if column else 2)
        if row == 0:
            axis.set_title("query" if column == 0 else f"{column}", fontsize=9)
    return figure


def write_npz(path: Path, columns: Mapping[str, np.ndarray]) -> None:
    """Write the columns atomically as an `.npz` archive without pickles."""
    with atomic_file(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, allow_pickle=False, **columns)


def write_parquet(path: Path, columns: Mapping[str, np.ndarray]) -> None:
    """Write the columns atomically as a Parquet table; the features are lists of a fixed length."""
    import pyarrow
    import pyarrow.parquet

    features = columns["features"]
    table: dict[str, Any] = {
        name: pyarrow.array(values) for name, values in columns.items() if values.ndim == 1
    }
    flat = pyarrow.array(features.ravel())
    table["features"] = pyarrow.FixedSizeListArray.from_arrays(flat, features.shape[1])
    with atomic_file(path) as temporary:
        pyarrow.parquet.write_table(pyarrow.table(table), temporary)
