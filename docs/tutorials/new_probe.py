# %% [markdown]
# # A new probe
#
# The probe of this page gives each image the class whose mean feature is nearest. A probe of frozen features
# is one file: the backbone encodes every labelled image once, and all probes share the result.
#
# ## The module
#
# Derive from `Probe`. `pools` names the grids to which stage maps are pooled: 1 is the mean of the map.
# `features.get(split, stage, pool)` returns `(N, D)` floats of the split `train`, `heldout` or `test`.

# %% language="bash"
# cat > ssl_lightning/probes/nearest_mean.py <<'END'
# """Nearest class mean: each image gets the class whose mean feature is closest."""
#
# from __future__ import annotations
#
# import torch
# import torch.nn.functional as F
# from torch import Tensor
#
# from ssl_lightning.artifacts.records import Record
# from ssl_lightning.features.encode import Features
# from ssl_lightning.probes.base import Probe, out_of_fold, records_of, selecting_folds, selection
#
#
# class NearestMeanProbe(Probe):
#     """Top-1 of the nearest class mean (Mensink et al. 2013), by Euclidean distance, for every stage."""
#
#     pools = (1,)
#
#     def run(self, features: Features, *, num_classes: int) -> list[Record]:
#         labels, records = features.labels, []
#         known = torch.cat([labels["train"], labels["heldout"]])
#         part = selecting_folds(labels)  # (N,) fold of each of them; None if 500 images are held out
#         for stage in features.stages:
#             train, heldout, test = (
#                 features.get(split, stage, 1) for split in ("train", "heldout", "test")
#             )
#             both = torch.cat([train, heldout])
#             if part is None:
#                 unseen = scores(heldout, train, labels["train"], num_classes), labels["heldout"]
#             else:
#                 unseen = scores_of_folds(part, both, known, num_classes), known
#             protocol = {
#                 "distance": "euclidean",
#                 "pool": [1, 1],
#                 "dims": both.shape[1],
#                 "labels": {"train": len(train), "heldout": len(heldout)},
#                 **selection(part),
#             }
#             tested = scores(test, both, known, num_classes), labels["test"]
#             records += records_of(stage, protocol, tested, unseen)
#         return records
#
#
# def scores(images: Tensor, bank: Tensor, labels: Tensor, num_classes: int) -> Tensor:
#     """Return minus the distance `(N, K)` of each image to the mean of each class of the bank."""
#     members = F.one_hot(labels, num_classes).T.float()  # (K, M)
#     counts = members.sum(1, keepdim=True)
#     distances = torch.cdist(images, members @ bank / counts.clamp(min=1))
#     return -distances.masked_fill(counts.T == 0, torch.inf)
#
#
# def scores_of_folds(part: Tensor, bank: Tensor, labels: Tensor, num_classes: int) -> Tensor:
#     """Return the scores `(N, K)` of each image by the means of the other folds."""
#
#     def score(_fold: int, rows: Tensor) -> Tensor:
#         return scores(bank[rows], bank[~rows], labels[~rows], num_classes)[None]
#
#     return out_of_fold(part, score)[0]
# END

# %% [markdown]
# - **Records.** `records_of` makes a `Record` for each metric: top-1, and the balanced accuracy if classes
#   are unequal. It puts the held-out figure into `protocol["heldout"]`; the stage with the best one is
#   marked, and the test images choose nothing.
# - **Protocol.** `labels` is required, and `folds` after a cross-validation: `selection` adds it. Add every
#   setting that a comparison needs. The runner adds the names of probe and branch.
# - **Few held-out images.** Below 500 they choose by luck ([numbers](../trust.md#numbers)). Then
#   `selecting_folds` gives five folds of train and held-out images together, and `out_of_fold` scores each
#   image by the means of the other folds. A probe has to call both; nothing else does it.
# - **No test split.** If the data have none, the runner calls `run` for each fold of the labelled images and
#   merges the records. The probe does nothing for it.
#
# ## The config and the test
#
# The first line of the config names the key. A test compares with another library.

# %% language="bash"
# cat > conf/probe/nearest_mean.yaml <<'END'
# # @package probe.nearest_mean
# # Nearest class mean by Euclidean distance, for every stage
# _target_: ssl_lightning.probes.nearest_mean.NearestMeanProbe
# END
# cat > tests/probes/test_nearest_mean.py <<'END'
# """Nearest class mean: against scikit-learn, with many and with few held-out images."""
#
# import pytest
# import torch
# from sklearn.neighbors import NearestCentroid
#
# from ssl_lightning.core.seeding import generator
# from ssl_lightning.features.encode import Features
# from ssl_lightning.probes.nearest_mean import NearestMeanProbe
#
#
# @pytest.mark.parametrize("heldout", [60, 500])
# def test_figures_are_scikit_learns(heldout: int) -> None:
#     sizes = {"train": 200, "heldout": heldout, "test": 100}
#     labels = {split: torch.arange(n) % 4 for split, n in sizes.items()}
#     x = {split: torch.randn(n, 6, generator=generator(split)) for split, n in sizes.items()}
#     x = {split: values + torch.eye(4, 6)[labels[split]] for split, values in x.items()}
#     pooled = {split: {("stage1", (1, 1)): values} for split, values in x.items()}
#     features = Features(labels, ("stage1",), {("stage1", 1): (1, 1)}, pooled, 1.0, 1.0)
#     (record,) = NearestMeanProbe().run(features, num_classes=4)
#     both = torch.cat([x["train"], x["heldout"]]), torch.cat([labels["train"], labels["heldout"]])
#     assert record.value == pytest.approx(NearestCentroid().fit(*both).score(x["test"], labels["test"]))
#     assert record.heldout_images == (heldout if heldout == 500 else 200 + heldout)
#     assert 0.3 < record.heldout < 0.9
# END
# python -m pytest -q tests/probes/test_nearest_mean.py | tail -n 1
# python train.py data=fake trainer=cpu trainer.max_epochs=1 probe=[nearest_mean] probe_untrained=true \
#     | grep -A 5 "^Test top-1"

# %% [markdown]
# `evaluate.py run=<run folder> probe=[nearest_mean]` adds the figures to a finished run.
# [Contributing](../contributing.md#add-a-probe) lists what else a probe can override.
