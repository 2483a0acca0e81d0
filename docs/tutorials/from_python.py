# %% [markdown]
# # From Python
#
# A pretext task is a `LightningModule`. This page trains one by a stock `Trainer`, watches it, measures it
# and stores it, all in a notebook and without config files.
#
# ## Data
#
# `ImageData` takes a folder, arrays, or any torch data set. Here it takes arrays of small striped images,
# lit from above, which the package generates for trials. The class of an image is the direction of its
# stripes.

# %%
from ssl_lightning import ImageData
from ssl_lightning.data.fake import striped

train, train_labels = striped(240, 4, 3, 32, "train")  # 240 images, 4 classes, 3 channels, 32 x 32 pixels
test, test_labels = striped(120, 4, 3, 32, "test")
data = ImageData(train, (train, train_labels), (test, test_labels), batch_size=32)
print(train.shape, train.dtype)

# %% [markdown]
# ## Train
#
# Any network is a backbone. The task finds its stages, which are the maps after which the resolution
# halves.

# %%
import logging
import warnings

import pytorch_lightning as pl
import timm
from pytorch_lightning.loggers import CSVLogger

from ssl_lightning import Rotation

logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", module="pytorch_lightning")
pl.seed_everything(0)
task = Rotation(timm.create_model("resnet18"))
logger = CSVLogger(".", name="logs", version="rotation")
trainer = pl.Trainer(
    max_epochs=2,
    accelerator="cpu",
    logger=logger,
    log_every_n_steps=1,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(task, data)
print(
    {
        name: round(float(value), 3)
        for name, value in trainer.callback_metrics.items()
        if name.startswith("val/")
    }
)

# %% [markdown]
# The scores go to the logger of the `Trainer`, as for every other module:

# %%
import csv

import matplotlib.pyplot as plt

with open("logs/rotation/metrics.csv") as file:
    rows = [row for row in csv.DictReader(file) if row["train/loss"]]
plt.figure(figsize=(6, 3))
plt.plot([int(row["step"]) for row in rows], [float(row["train/loss"]) for row in rows])
plt.xlabel("step")
plt.ylabel("train/loss")
plt.show()

# %% [markdown]
# ## Look
#
# `panel` returns pictures of what the task does to images, and the answers of the network:

# %%
import torch

images = torch.as_tensor(test[:3]).permute(0, 3, 1, 2) / 255  # (3, 3, 32, 32)
with torch.no_grad():
    panel = task.eval().panel(images)
figure, axes = plt.subplots(*panel.images.shape[:2], figsize=(6, 6), squeeze=False)
for line, row in zip(axes, panel.images, strict=True):
    for axis, image, title in zip(line, row, panel.columns, strict=True):
        axis.imshow(image.permute(1, 2, 0).clamp(0, 1))
        axis.set_title(title, fontsize=8)
        axis.axis("off")
plt.show()

# %% [markdown]
# ## Measure
#
# `probe` fits a linear classifier and nearest neighbours on the frozen features of every stage. The control
# is the task before its training, whose weights the same seed gives: `against` puts both into one table.
#
# Stripes are so easy that the control is near 100 %: the figures below show the form of the table, and say
# nothing of rotation. Folders of your own images give figures that do, in place of the arrays above:
#
#     data = ImageData("photos/", "labelled/train", "labelled/test", image_size=64, batch_size=32)
#     labelled, held = "labelled/train", "labelled/test"  # one folder per class
#
# On CIFAR-10 with the backbone `convnet`, rotation raises the linear probe from 47.4 to 65.9 % in four passes
# ([the table](../table.md)).

# %%
from ssl_lightning import probe

labelled, held = (train, train_labels), (test, test_labels)
torch.manual_seed(0)
before = probe(Rotation(timm.create_model("resnet18")), labelled, held, image_size=32)
after = probe(task, labelled, held)
print(after.against(before))
print(after.best("linear"))

# %% [markdown]
# ## Store
#
# A checkpoint of the `Trainer` gives the task back, with its backbone:

# %%
trainer.save_checkpoint("rotation.ckpt")
again = Rotation.load_from_checkpoint("rotation.ckpt", map_location="cpu").eval()
maps = again.backbone(torch.zeros(1, 3, 32, 32))
print([tuple(each.shape) for each in maps])

# %% [markdown]
# Next: [a new task](new_task.md). [Python](../python.md) lists what else these classes take.
