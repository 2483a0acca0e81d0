# %% [markdown]
# # First run
#
# This page trains a small network without labels, measures its features, and reads what the run wrote. It
# downloads nothing. The times below are from one core of an AMD EPYC, beside other work. The commands run in
# the checkout, after `make setup` and `source .venv/bin/activate`.
#
# ## Train
#
# `data=fake` generates striped images, lit from above. The direction of the stripes is the class. Rotation
# is the pretext task: each image is turned by 0, 90, 180 or 270 degrees, and the network predicts by how
# much.

# %% language="bash"
# python train.py task=rotation data=fake trainer=cpu trainer.max_epochs=2 \
#     probe_untrained=true probe.knn.ks=[5] name=first

# %% [markdown]
# Every word after `train.py` overrides a line of the config: `task=` and `data=` choose an option of a
# group, and `trainer.max_epochs=` sets one key. [Choose](../choose.md) lists the groups, and
# [Config keys](../config.md) every key.
#
# The table compares the backbone before its first step with the trained one, for each of its three stages.
# `linear` is a linear classifier on frozen features, and `knn` a vote of the nearest neighbours. A star
# marks the stage that held-out images chose, never the test images.
#
# Read the last line first: the verdict. Here it warns you. The direction of stripes is so easy that a
# network with random weights already shows it, and pretraining cannot add much.
#
# Photographs are different. For real figures, `data=cifar10` replaces `data=fake`, and for your own images
# `data=folder data.pretrain_dir=/my/images` ([own images](../own_images.md)). The quick start has good
# settings for CIFAR-10, which it downloads:
#
#     python train.py experiment=quick_start
#
# The run of the README took 98 s on two cores, with this table:
#
# ```
#  backbone                      linear                    knn k=20                   knn k=200
#  ────────────────────────────────────────────────────────────────────────────────────────────
#  stage1     48.2* → 53.6   +5.4 ± 0.5   35.2  → 41.9   +6.7 ± 0.5   32.6  → 40.7   +8.1 ± 0.5
#  stage2     44.2  → 60.9  +16.7 ± 0.6   35.6  → 50.2  +14.6 ± 0.6   34.0* → 48.0  +13.9 ± 0.5
#  stage3     45.7  → 66.8* +21.1 ± 0.6   35.8* → 59.5* +23.7 ± 0.6   34.1  → 57.3* +23.2 ± 0.6
# ```
#
# The stars of its linear probe say: the best stage of the untrained network names the class of 48.2 % of the
# 10,000 test photographs. After two passes over 45,000 photographs without labels it is 66.8 %. Guessing
# gives 10 %.
#
# ## Look
#
# The run folder has a picture of the task with the answers of the network: green is right, red is wrong.

# %%
from pathlib import Path

import matplotlib.pyplot as plt

folder = Path("outputs/rotation/fake/convnet/first")
plt.figure(figsize=(6, 8))
plt.imshow(plt.imread(folder / "panel.png"))
plt.axis("off")
plt.show()

# %% [markdown]
# `results.json` holds every figure with the settings that it was measured with:

# %%
from ssl_lightning.artifacts.results import read_results

results = read_results(folder / "results.json")
for record in results.probes[-3:]:
    print(record)
print(results.run.verdict.kind)

# %% [markdown]
# ## Go on
#
# The same run trains for two more epochs. It continues from its checkpoint, exactly where it ended:

# %% language="bash"
# python train.py resume=outputs/rotation/fake/convnet/first trainer.max_epochs=4 | tail -n 3

# %% [markdown]
# Another probe measures the stored backbone, and its figures are added to the same file:

# %% language="bash"
# python evaluate.py run=outputs/rotation/fake/convnet/first probe=[rankme]

# %% [markdown]
# One more run gives something to compare with, and `report.py` puts all runs into one table. It also writes
# the page `report/report.html`:

# %% language="bash"
# python train.py task=jigsaw data=fake trainer=cpu trainer.max_epochs=2 \
#     probe_untrained=true probe.knn.ks=[5] name=second | tail -n 1
# python report.py

# %% [markdown]
# Next: [your own images](../own_images.md), or the same [from Python](from_python.md).
