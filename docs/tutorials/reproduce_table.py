# %% [markdown]
# # Reproduce a table
#
# A benchmark is one command for all rows of a table, and one for the table itself. The commands run in the
# checkout, after `make setup` and `source .venv/bin/activate`.
#
# ## The published table
#
# The results behind [the table](../table.md) of the README are in the repository. `report.py` makes the
# rows of its six pretext tasks from them in seconds; `benchmark=cifar10_methods` makes all rows:

# %% language="bash"
# python report.py benchmark=cifar10_six budget=cpu outputs=docs/results out=published

# %% [markdown]
# Every figure has its settings beside it, and the command of its run:

# %%
import json
from pathlib import Path

stored = Path("docs/results/benchmark/cifar10_six/cpu/rotation/seed0/results.json")
print(json.loads(stored.read_text())["run"]["command"])

# %% [markdown]
# ## Run the rows
#
# The command `python train.py +benchmark=cifar10_six budget=cpu seed=0,1,2` makes all of them again, on
# CIFAR-10, in three hours of one core. A dry run comes first: `budget=tiny` takes seconds for a row. This
# page also takes two rows only, and generated images instead of CIFAR-10. Without `data=fake
# data.num_train=640 data.num_test=100` the same command takes CIFAR-10:

# %% language="bash"
# python train.py +benchmark=cifar10_six budget=tiny experiment=cifar10_random,cifar10_rotation \
#     data=fake data.num_train=640 data.num_test=100 trainer=cpu | grep -E "^(run|verdict)"

# %% [markdown]
# The command can be stopped at any time and given again. It skips finished rows, resumes an interrupted row
# and retries a failed one:

# %% language="bash"
# python train.py +benchmark=cifar10_six budget=tiny experiment=cifar10_random,cifar10_rotation \
#     data=fake data.num_train=640 data.num_test=100 trainer=cpu

# %% [markdown]
# ## Make the table
#
# Notes below the table name the rows that have not run, and what the verdict of each run was. The figures
# mean nothing: they come from a dry run on generated images, and only the title still says CIFAR-10.

# %% language="bash"
# python report.py benchmark=cifar10_six budget=tiny
# ls report

# %% [markdown]
# `report.html` is a page to sort and to read the protocol of every figure. `table.tex` goes into a paper.
#
# Your own table is a file in `conf/benchmark/`: [how to add a
# benchmark](../contributing.md#add-a-benchmark).
