# %% [markdown]
# # A cluster
#
# A run on many processes computes the same as on one. This page shows it on one machine, with processes on
# its CPU; on a cluster only the launcher differs. The commands run in the checkout, after `make setup` and
# `source .venv/bin/activate`.
#
# ## Two processes
#
# `trainer.devices` is the number of processes. `data.batch_size` is the batch of all of them together, so
# that their number changes the speed and not the result. The images are generated, so the page shows that
# runs are equal, and not how good they are: [the table](../table.md) has figures of `data=cifar10`.

# %% language="bash"
# few="data.num_train=128 data.num_test=32 data.heldout=32 probe=[] callbacks=[checkpoint,progress]"
# train="python train.py task=rotation data=fake $few trainer=cpu trainer.precision=32-true"
# $train trainer.max_epochs=2 name=one | grep -E "^(hardware|batch|pretext)"
# $train trainer.max_epochs=2 name=two trainer.devices=2 | grep -E "^(hardware|batch|pretext)"

# %%
from safetensors.torch import load_file

folder = "outputs/rotation/fake/convnet"
one, two = (load_file(f"{folder}/{name}/backbone.safetensors") for name in ("one", "two"))
print(f"largest difference of a weight: {max((one[key] - two[key]).abs().max() for key in one):.0e}")

# %% [markdown]
# What is left is rounding: two processes add numbers in another order, and each step of the training
# enlarges the difference.
#
# ## A job that ends too early
#
# Clusters stop jobs when their time is over. SLURM sends a signal before (`--signal=USR1@120`), and the run
# saves a checkpoint and ends. Here `kill` plays that part and stops a run that would take a thousand
# epochs:

# %% language="bash"
# few="data.num_train=128 data.num_test=32 data.heldout=32 probe=[] callbacks=[checkpoint,progress]"
# train="python train.py task=rotation data=fake $few trainer=cpu trainer.precision=32-true"
# $train trainer.max_epochs=1000 name=stopped > job.txt 2>&1 &
# job=$!
# until [ -f outputs/rotation/fake/convnet/stopped/checkpoints/last.ckpt ]; do sleep 0.2; done
# kill -TERM $job
# wait $job || echo "exit status $?"
# tail -n 1 job.txt

# %% [markdown]
# The same run, started again with `resume=`, continues in the middle of the epoch. Its length and the
# number of its processes may change:

# %% language="bash"
# epochs=$(($(grep -c "val/acc" job.txt) + 2))
# run=outputs/rotation/fake/convnet/stopped
# python train.py resume=$run trainer.devices=2 trainer.max_epochs=$epochs \
#     | grep -E "^(hardware|epoch|pretext)"

# %% [markdown]
# ## Started by torchrun
#
# Where torchrun or SLURM start the processes, `trainer=torchrun` and `trainer=slurm` join them. On several
# machines `torchrun` also gets `--nnodes` and the name of the first machine:

# %% language="bash"
# few="data.num_train=128 data.num_test=32 data.heldout=32 probe=[] callbacks=[checkpoint,progress]"
# torchrun --standalone --nproc-per-node=2 train.py task=rotation data=fake $few trainer=torchrun \
#     trainer.accelerator=cpu trainer.max_epochs=1 name=three 2> /dev/null | grep -E "^(hardware|pretext)"

# %% [markdown]
# ## By SLURM
#
# [Clusters](../cluster.md#several-machines-by-slurm) has the script for several machines, which saves
# before its time ends, goes back into the queue and resumes. [A sweep](../cluster.md#sweeps-by-slurm) makes
# one job of each run. That page also lists what was tested on which machines.
