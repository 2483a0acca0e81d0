# %% [markdown]
# # A new task in three files
#
# The task of this page: was the image turned upside down? A task is a module, a config and a test. For your
# own use no existing file changes; [contributing](../contributing.md#what-to-add-where) one takes a few rows
# of tests more. The commands run in the checkout, after `make setup` and `source
# .venv/bin/activate`.
#
# ## The module
#
# Derive from `PretextTask` and write two methods. `step` gets a batch as floats in [0, 1], and returns
# scores; `"loss"` is minimised. `panel` returns pictures for people.

# %% language="bash"
# cat > ssl_lightning/tasks/upside_down.py <<'END'
# """Upside-down prediction: was the image turned by 180 degrees?"""
#
# from __future__ import annotations
#
# from typing import Any
#
# import torch
# import torch.nn.functional as F
# from torch import Tensor, nn
#
# from ssl_lightning.core.image_spec import ImageSpec
# from ssl_lightning.networks.heads import PooledClassifier
# from ssl_lightning.tasks.base import Panel, PretextTask
#
#
# class UpsideDown(PretextTask):
#     """Predict whether an image was turned by 180 degrees.
#
#     Args:
#         backbone: The backbone.
#         spec: Shape and statistics of the images.
#         share: Share of the images that are turned, in (0, 1).
#         **base: The keywords of `PretextTask`.
#
#     Raises:
#         ValueError: `share` is out of range.
#     """
#
#     def __init__(
#         self, backbone: nn.Module, spec: ImageSpec | None = None, *, share: float = 0.5, **base: Any
#     ) -> None:
#         super().__init__(backbone, **base)
#         if not 0 < share < 1:
#             raise ValueError(f"task.share is {share}; allowed is a number between 0 and 1")
#         self.share = share
#         self.chance = max(share, 1 - share)
#         if spec is not None:
#             self.build(spec)
#
#     def build(self, spec: ImageSpec) -> None:
#         super().build(spec)
#         self.head = PooledClassifier(self.backbone, 2)
#
#     def logits(self, images: Tensor) -> Tensor:
#         return self.head(self.backbone(self.normalise(images)))  # (B, 2)
#
#     def step(self, images: Tensor, labels: Tensor, stream: torch.Generator) -> dict[str, Tensor]:
#         turned = torch.rand(len(images), generator=stream, device=images.device) < self.share
#         x = torch.where(turned.view(-1, 1, 1, 1), images.flip(2, 3), images)
#         logits = self.logits(x)
#         return {
#             "loss": F.cross_entropy(logits, turned.long()),
#             "acc": (logits.argmax(1) == turned).float().mean(),
#         }
#
#     def panel(self, images: Tensor) -> Panel:
#         pairs = torch.stack([images, images.flip(2, 3)], 1)  # (B, 2, C, H, W)
#         answers = self.logits(pairs.flatten(0, 1)).argmax(1).unflatten(0, (-1, 2))  # (B, 2)
#         text = [[("upright", "turned")[answer] for answer in row] for row in answers.tolist()]
#         right = (answers == torch.tensor([0, 1], device=answers.device)).tolist()
#         return Panel(pairs, ["upright", "turned"], text, right)
# END

# %% [markdown]
# Heads are built in `build`, because only there the shape of the images is known. `chance` is the accuracy
# of guessing; the verdict of a run needs it.
#
# - **Backbone.** `self.backbone(x)` returns the list of its stage maps, each `(B, C_i, H_i, W_i)`, shallow to
#   deep.
# - **Random numbers.** All come from `stream`, because a resumed run must draw the same ones; a call without
#   `generator=stream` breaks that.
# - **Ops.** A longer corruption is a pure function in `ssl_lightning/ops/`.
#   [Contributing](../contributing.md#add-a-task) lists what is there.
# - **Style.** A registered buffer is annotated in the class for mypy, as in `weight: Tensor`. Lines have at
#   most 110 characters.
#
# ## The config
#
# The config names the class and gives every keyword a value and a comment. The last three belong to every
# task (`PretextTask`):

# %% language="bash"
# cat > conf/task/upside_down.yaml <<'END'
# # Was the image turned by 180 degrees?
# _target_: ssl_lightning.tasks.upside_down.UpsideDown
# share: 0.5 # share of the images that are turned
# lr_reference_batch: null # a number: lr * global batch / this (linear scaling); null: lr as it is
# freeze_until: 0.0 # share of the run in which the backbone stays as it is, for weights of init_from
# backbone_lr_factor: 1.0 # learning rate of the backbone over that of the heads
# END

# %% [markdown]
# ## The test
#
# Tests compare values with a second opinion: a closed form, a naive loop, another library. Zero logits for
# two classes give a loss of log 2. A task must also be able to learn a few images by heart.

# %% language="bash"
# cat > tests/tasks/test_upside_down.py <<'END'
# """Upside-down: closed form, learning, the panel."""
#
# import math
#
# import pytest
# import torch
#
# from ssl_lightning.core.image_spec import ImageSpec
# from ssl_lightning.core.seeding import generator
# from ssl_lightning.networks.convnet import ConvNet
# from ssl_lightning.tasks.upside_down import UpsideDown
#
# SPEC = ImageSpec(3, 16, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
# LABELS = torch.full((16,), -1)
#
#
# def make(**options) -> UpsideDown:
#     torch.manual_seed(0)
#     return UpsideDown(ConvNet(widths=(4, 8), strides=(2, 2)), SPEC, **options)
#
#
# def test_zero_logits_give_log_2() -> None:
#     task = make()
#     torch.nn.init.zeros_(task.head.linear.weight)
#     torch.nn.init.zeros_(task.head.linear.bias)
#     scores = task.step(torch.rand(16, 3, 16, 16), LABELS, generator(0))
#     assert scores["loss"].item() == pytest.approx(math.log(2))
#
#
# def test_a_few_images_are_learned_by_heart() -> None:
#     task = make()
#     images = torch.rand(16, 3, 16, 16, generator=generator(5))
#     optimizer = torch.optim.SGD(task.parameters(), lr=0.1, momentum=0.9)
#     for _ in range(100):
#         scores = task.step(images, LABELS, generator(0))
#         optimizer.zero_grad()
#         scores["loss"].backward()
#         optimizer.step()
#     assert scores["acc"].item() >= 0.95
#
#
# def test_the_panel_shows_the_image_and_the_turned_image() -> None:
#     images = torch.rand(3, 3, 16, 16)
#     panel = make().eval().panel(images)
#     assert torch.equal(panel.images[:, 0], images)
#     assert torch.equal(panel.images[:, 1], images.rot90(2, (2, 3)))
#
#
# def test_a_bad_share_is_refused() -> None:
#     with pytest.raises(ValueError, match=r"task\.share is 1"):
#         make(share=1)
# END
# python -m pytest -q tests/tasks/test_upside_down.py | tail -n 1
# python -m pytest -q tests/test_layout.py -k its_config | tail -n 1

# %% [markdown]
# `tests/test_layout.py` checks that the three files are there, and `tests/test_conf.py` that the config
# builds.
#
# ## Train
#
# `train.py`, `evaluate.py`, `report.py` and `export.py` know the task now. Each run gets a folder of its own:

# %% language="bash"
# python train.py task=upside_down data=fake trainer=cpu trainer.max_epochs=2 \
#     probe_untrained=true probe.knn.ks=[5]

# %%
from pathlib import Path

import matplotlib.pyplot as plt

panel = max(Path("outputs/upside_down/fake/convnet").glob("*/panel.png"))  # of the newest run
plt.figure(figsize=(4, 8))
plt.imshow(plt.imread(panel))
plt.axis("off")
plt.show()

# %% [markdown]
# The generated stripes only show that the task runs: its verdict says that it is solved, and the untrained
# backbone is near 100 % already. For figures that judge the task, give the same command `data=cifar10` in
# place of `data=fake trainer=cpu`. There guessing gives 10 %, the untrained backbone reaches 47.4 %, and
# rotation, which tells four directions apart, 65.9 % after four passes ([the table](../table.md)).
#
# A wrong value is refused before any work, by the words of the constructor:

# %% language="bash"
# python train.py task=upside_down data=fake task.share=2 2>&1 || true

# %% [markdown]
# A task that is easy to solve may have a shortcut: [shortcuts](../shortcuts.md) tells how to find it.
# [Contributing](../contributing.md#add-a-task) (the file `CONTRIBUTING.md`) lists what else a task can
# override: guards, several views, networks of its own. Two commands need more than the three files.
# `compare.py` takes tasks with a row in `ssl_lightning/config/task_settings.py`, and `audit.py` takes tasks
# with `guards`. A task can also live
# in [a package of your own](../python.md#plugin-packages).
