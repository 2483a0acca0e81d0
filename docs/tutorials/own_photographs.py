# %% [markdown]
# # Own photographs
#
# This page goes from folders of pictures to a classifier. [Solar cells](../solar_cells.md) does the same with
# 2,624 pictures and fifteen minutes, and reads the result closely. This page ran in two minutes on one
# core of an AMD EPYC, beside other work.
#
# ## Folders
#
# Two photographs that come with scikit-learn, a temple and a flower, stand in for yours. They are cut into
# squares of 48 px. Half of them have no label; the class of the others is the photograph that they come from.

# %%
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_sample_image

for name in ("china", "flower"):
    photograph = Image.fromarray(load_sample_image(f"{name}.jpg"))  # 640 x 427 px
    for number in range(104):
        place = ("photos", f"labelled/{name}", "photos", f"test/{name}")[number % 4]
        folder = Path("pictures", place)
        folder.mkdir(parents=True, exist_ok=True)
        left, top = 48 * (number % 13), 48 * (number // 13)
        photograph.crop((left, top, left + 48, top + 48)).save(folder / f"{name}{number}.png")
for folder in sorted(Path("pictures").rglob("*")):
    if folder.is_dir() and (count := len(list(folder.glob("*.png")))):
        print(folder, count)

# %% [markdown]
# ## Which task suits them
#
# `compare.py` tries pretext tasks within a given time; without `compare.tasks=` the six classic ones. It
# prints the progress and the verdict of each training, and ends with a paragraph that `COMPARE.md` keeps:

# %% language="bash"
# python compare.py data=folder data.pretrain_dir=pictures/photos data.train_dir=pictures/labelled \
#     data.test_dir=pictures/test data.image_size=48 trainer=cpu \
#     'compare.tasks=[rotation,colorization]' minutes=2 > compare.log
# grep -E "^(round|verdict)" compare.log | fold -s -w 100
# echo
# sed -n 5p outputs/compare/folder/convnet/first/COMPARE.md | fold -s -w 100

# %% [markdown]
# The network with untrained weights is part of the comparison, and a task has to beat it. Here it is right
# about nearly every square: colours alone tell a temple from a flower, so these pictures need no pretraining.
# That is the answer to ask for first. A few seconds of training on a hundred squares would not change much
# either; your own pictures need more of both.
#
# ## Use the network
#
# Each training left a run folder with its backbone and its linear classifier. `transform` cuts and normalises
# a picture as the probe did.

# %%
import matplotlib.pyplot as plt
import torch

import ssl_lightning

run = "outputs/compare/folder/convnet/first/rotation_round_1-0"
model = ssl_lightning.load_classifier(run)
paths = sorted(Path("pictures/test").glob("*/*.png"))[::7]
scores = model(torch.stack([model.transform(Image.open(path)) for path in paths]))
names = [model.class_names[each] for each in scores.argmax(1)]
figure, axes = plt.subplots(1, len(paths), figsize=(1.2 * len(paths), 1.6))
for axis, path, name in zip(axes, paths, names, strict=True):
    axis.imshow(plt.imread(path))
    axis.set_title(name, color="green" if name == path.parent.name else "red")
    axis.axis("off")
plt.show()

# %% [markdown]
# Features need no labels. These are the nearest neighbours of some squares among those without
# labels:

# %%
backbone = ssl_lightning.load_backbone(run)
stock = sorted(Path("pictures/photos").glob("*.png"))


def features(files: list[Path]) -> torch.Tensor:
    """Return features of unit length, `(N, C)`."""
    batch = torch.stack([backbone.transform(Image.open(path)) for path in files])
    with torch.no_grad():
        return torch.nn.functional.normalize(backbone(batch)[-1].mean((2, 3)))


queries = paths[::2]
nearest = (features(queries) @ features(stock).T).topk(4).indices
figure, axes = plt.subplots(len(queries), 5, figsize=(5, 1.05 * len(queries)))
for row, query, found in zip(axes, queries, nearest, strict=True):
    for axis, path in zip(row, [query, *(stock[each] for each in found)], strict=True):
        axis.imshow(plt.imread(path))
        axis.axis("off")
plt.show()

# %% [markdown]
# The first column is the query. Next: [your own images](../own_images.md) has the formats, odd files, large
# sets and near-duplicates, and [export](../export.md) writes the network for other libraries.
