# %% [markdown]
# # A new data set
#
# The data set of this page has two folders: `photos/` without labels, and `labelled/<class>/` for the
# probes. A labelled picture may lie in `photos/` too. The commands run in the checkout.
#
# ## The module
#
# Derive from `PairedDataModule` and write `load`, which returns a `Pairing`. `fetch` may download, or fail
# early. The base class draws the splits, measures mean and deviation, and makes batches.

# %% language="bash"
# cat > ssl_lightning/data/garden.py <<'END'
# """Garden pictures: one folder without labels, one with a folder for each class."""
#
# from __future__ import annotations
#
# from pathlib import Path
# from typing import Any
#
# import torch
# from torch import Tensor
#
# from ssl_lightning.data.base import PairedDataModule, Pairing
# from ssl_lightning.data.folder import hold_out_test
# from ssl_lightning.data.io.augment import CropFlip
# from ssl_lightning.data.io.file_list import FileList
# from ssl_lightning.data.io.folders import MAX_PIXELS, as_tensor, decode
# from ssl_lightning.data.io.overlap import match
# from ssl_lightning.data.io.scan import classes_of, scan
# from ssl_lightning.data.io.sources import ArraySource, resize
#
#
# class Garden(PairedDataModule):
#     """Pictures of a garden, held in memory.
#
#     Args:
#         dir: Folder with `photos` and `labelled/<class>`.
#         **base: The keywords of `PairedDataModule`.
#     """
#
#     name = "garden"
#
#     def __init__(self, *, dir: str, **base: Any) -> None:
#         super().__init__(**base)
#         self.folder = Path(dir)
#
#     def load(self) -> Pairing:
#         photos, files = scan(self.folder / "photos"), scan(self.folder / "labelled")
#         names, labels = classes_of(self.folder / "labelled", files)
#         files, labels, tested, test_labels = hold_out_test(files, labels)
#         photos, overlap, copies = match(photos, files, tested, self.folder)
#         return Pairing(
#             self.source(photos, None),
#             self.source(files, labels),
#             self.source(tested, test_labels) if len(tested) else None,
#             tuple(names),
#             overlap,
#             copies,
#         )
#
#     def source(self, files: FileList, labels: Tensor | None) -> ArraySource:
#         pixels = (as_tensor(decode(path, 3, MAX_PIXELS)) for path in files)  # (C, H, W) uint8
#         sized = [resize(each.permute(1, 2, 0)[None], self.image_size) for each in pixels]
#         return ArraySource(torch.cat(sized), labels, CropFlip(4, True))  # (N, H, W, C) uint8
# END

# %% [markdown]
# - **Pixels.** `ArraySource` takes `(N, H, W, C)` uint8. `CropFlip(4, True)` crops training images at random
#   from a border of 4 px and mirrors half of them; give `False` if a mirrored image has another class.
#   Batches are `(B, C, H, W)` uint8; the task turns them into floats.
# - **Large files.** `ImageFiles` (`data/_files.py`) is the base class that decodes files of any size when
#   they are needed; `InMemory` is the one for published arrays.
# - **Overlap.** `overlap` gives for each labelled image its place in the pretraining images, or -1.
#   Pretraining leaves out the held-out ones. Leave *tested* pictures out in `load`, as `match` does here by
#   path; `data.near_duplicates=drop` also finds copies.
# - **Test.** `hold_out_test` takes a fixed fifth if that is at least 500 images. Else `test` is `None`, and
#   the figures are cross-validated. Pretraining then may see tested pictures, without their labels.
#
# ## The config
#
# `???` marks a key without default: a run without it is refused. A path under another name than `dir`, or a
# key that changes no result, needs a row in `ssl_lightning/config/keys.py`. The last line copies the keywords
# of `PairedDataModule`, with their comments.

# %% language="bash"
# cat > conf/data/garden.yaml <<'END'
# # Garden pictures: photos/ without labels, labelled/<class>/ for the probes
# _target_: ssl_lightning.data.garden.Garden
# dir: ??? # folder with photos and labelled
# END
# sed -n "/^batch_size/,/^near_duplicates/p" conf/data/folder.yaml >> conf/data/garden.yaml

# %% [markdown]
# ## The test
#
# A test writes a small data set in the real format, and reads nothing from a network.

# %% language="bash"
# cat > tests/data/test_garden.py <<'END'
# """Garden: pixels, classes, and no held-out picture in pretraining."""
#
# from pathlib import Path
#
# import numpy as np
# from PIL import Image
#
# from ssl_lightning.data.garden import Garden
#
#
# def write(folder: Path) -> None:
#     (folder / "photos").mkdir(parents=True)
#     for number in range(40):
#         place = folder / "labelled" / ("rose", "tulip")[number % 2] / f"{number}.png"
#         place.parent.mkdir(parents=True, exist_ok=True)
#         Image.fromarray(np.full((20, 24, 3), 6 * number, np.uint8)).save(place)
#         (folder / "photos" / f"{number}.png").symlink_to(place.resolve())
#
#
# def test_pixels_classes_and_overlap(tmp_path: Path) -> None:
#     write(tmp_path)
#     data = Garden(dir=str(tmp_path), image_size=16, batch_size=8, heldout=10)
#     data.setup()
#     assert data.spec.class_names == ("rose", "tulip")
#     heldout = {int(image.max()) for images, _ in data.val_dataloader() for image in images}
#     pretrained = {int(image.max()) for images, _ in data.unlabelled() for image in images}
#     assert len(heldout) == 10
#     assert pretrained == {6 * number for number in range(40)} - heldout
# END
# python -m pytest -q tests/data/test_garden.py | tail -n 1
# python -c "from pathlib import Path; from tests.data.test_garden import write; write(Path('garden'))"
# python train.py data=garden data.dir=garden trainer=cpu trainer.max_epochs=1 probe.knn.ks=[5] \
#     | grep -E "^(run|data|verdict)"
# python train.py data=garden data.dir=garden trainer=cpu data.batch_size=64 2>&1 || true

# %% [markdown]
# The first run halves the default batch until the pretraining images fill it, and says so. The second one is
# refused, because a given `data.batch_size` is never changed: results depend on it.
