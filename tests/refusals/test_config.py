"""Refusals of configs, in one table of overrides and errors.

Every case builds a run on generated images, up to the start of work. A few cases in separate processes show
that the error reaches the terminal.
"""

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra.errors import HydraException, InstantiationException
from omegaconf.errors import OmegaConfBaseException

from ssl_lightning.config.misspelled import explained
from ssl_lightning.core.errors import RunError
from ssl_lightning.launch.train import check_start
from ssl_lightning.run.checks import try_step
from ssl_lightning.run.parts import build_parts
from ssl_lightning.tasks.rotation import Rotation
from tests._composed import composed
from tests._tasks import on_a_vit

ROOT = Path(__file__).parents[2]
DATA = ["data.num_train=48", "data.num_test=16", "data.heldout=16", "data.batch_size=8", "data.image_size=16"]
# nothing is trained here
TINY = ["data=fake", "trainer=cpu", "trainer.precision=32-true", "callbacks=[]", "logger=[]", "probe=[]"]

WHOLE = "allowed is a whole number"
FINITE = "allowed is a finite number"
BEGINS = "allowed is a number of batches above 0, or a fraction"
STOP = "+callbacks.stop._target_=pytorch_lightning.callbacks.EarlyStopping +callbacks.stop.monitor"
CASES = {
    # top level
    "seed=x": f"seed is 'x'; {WHOLE}",
    "seed=1.5": f"seed is 1.5; {WHOLE}",
    "seed=null": f"seed is None; {WHOLE}",
    "sedd=1": "sedd is not a key of the config; did you mean seed",
    "minutes=30": "minutes is a key of `python compare.py`, not of `python train.py`",
    "compare.tasks=[rotation]": "compare is a key of `python compare.py`, not of `python train.py`",
    "weights=moco.pth": "weights is a key of `python evaluate.py`, not of `python train.py`",
    "zzz=1": "zzz is not a key of the config; `python train.py --help` lists the keys",
    "+sedd=1": "sedd is not a key of the config; did you mean seed",
    "name=": "name is ''; allowed is text that is not empty",
    "channels_last=maybe": "channels_last is 'maybe'; allowed is true or false",
    "deterministic=yes_please": "deterministic is 'yes_please'; allowed is true or false",
    "objective=3": "objective is 3; allowed is text or null",
    "prefix_map=[a]": r"prefix_map is \['a'\]; allowed is a mapping.* or null",
    "init_from=3": "init_from is 3; allowed is text or null",
    "init_from=/nowhere/x.ckpt": "/nowhere/x.ckpt is not there; give a run folder, a .safetensors",
    "seed=${nothing}": "Interpolation key 'nothing' not found",
    # choices
    "task=rotaton": r"'task/rotaton'; did you mean rotation\?$",
    "data=cifar100": r"(?s)'data/cifar100'.*cifar10",
    "backbone=resnet": r"(?s)'backbone/resnet'.*resnet18",
    "optimizer=adamax": r"(?s)'optimizer/adamax'.*adamw",
    "scheduler=linear": r"(?s)'scheduler/linear'.*one_cycle",
    "trainer=tpu": r"(?s)'trainer/tpu'.*gpu",
    "probe=[linaer]": r"Could not load 'probe/linaer'; did you mean linear, nonlinear\? Allowed are .*svm",
    "callbacks=[x]": "Could not load 'callbacks/x'",
    "logger=[x]": "Could not load 'logger/x'",
    "probe=linear,knn": r"(?s)Ambiguous value.*use key=\[value1,value2\]",
    # data
    "data.batch_size=0": "data.batch_size is 0; it must be at least 1",
    "data.batch_size=1e3": f"data.batch_size is 1000.0; {WHOLE}",
    "data.batch_size=1e-3x": f"data.batch_size is '1e-3x'; {WHOLE}",
    "data.batch_size=null": f"data.batch_size is None; {WHOLE}",
    "data.batch_size=true": f"data.batch_size is True; {WHOLE}",
    "data.batch_size=[8]": rf"data.batch_size is \[8\]; {WHOLE}",
    "data.batch_size=64": "data.batch_size is 64; allowed for fake is 1 to 32, the pretraining images",
    "data.batch_size=8 trainer.devices=3": "data.batch_size is 8 .* divide evenly among 3 processes",
    "data.eval_batch_size=-1": "data.eval_batch_size is -1; it must be at least 1",
    "data.image_size=2": "data.image_size is 2 px, but the backbone has stride 4 .* to 4 or more",
    "data.image_size=[16,16]": rf"data.image_size is \[16, 16\]; {WHOLE}",
    "data.channels=2": "data.channels is 2; allowed are 1 .* and 4 .all as they are",
    "data.num_classes=100": "data.num_classes is 100, .* an image of each in both splits",
    "data.mean=[0.5,0.5,0.5]": "data.mean and data.std must both be given",
    "data.mean=[0.5] data.std=[0.5]": "both need one for each of the 3 channels",
    "data.mean=[5,0.5,0.5] data.std=[0.1,0.1,0.1]": "every value must be in 0 to 1",
    "data.mean=[nan,0.5,0.5] data.std=[0.1,0.1,0.1]": "data.mean is .*a list of finite numbers or null",
    "data.mean=[0.5,0.5,0.5] data.std=[0,0.1,0.1]": "std is .*above 0",
    "data.mean=[0.5,0.5,0.5] data.std=[a,b,c]": "data.std is .*a list of finite numbers",
    "data.heldout=48": "data.heldout is 48; allowed for fake is 0 to 47",
    "data.max_labels=1": "data.max_labels is 1; .*at least 4 .one a class.",
    "data.pretrain_size=4": "data.batch_size is 8; allowed for fake is 1 to 4",
    "data.crop_padding=16": "crop_padding is 16; it must be below the image size 16",
    "data.flip=sometimes": "data.flip is 'sometimes'; allowed is true or false",
    "data.num_trian=3": "data.num_trian is not a key of data; did you mean num_train",
    "+data.num_trian=3": "data.num_trian is not a key of data; did you mean num_train",
    "data=folder": r"(?i)missing mandatory value: (data\.)?pretrain_dir|data\.pretrain_dir must be given",
    "data=folder data.pretrain_dir=/nowhere": "folder /nowhere does not exist",
    "data=folder data.pretrain_dir=/ data.test_dir=/": "the probes need data.train_dir",
    "data=folder data.pretrain_dir=/ data.max_bad=2": "data.max_bad is 2; allowed is a fraction",
    "data=folder data.pretrain_dir=/ data.crop_scale=[1,0.2]": "crop_scale",
    "data=imagenet data.dir=/nowhere": "folder /nowhere/train does not exist; data.dir must hold",
    "data=camvid data.dir=/ data.size=[8,8]": "data.size",
    "data=camvid data.dir=/ data.class_names=[a,a]": "data.class_names is .*different names",
    # backbones
    "backbone.widths=[4,4]": r"widths are \[4, 4\] and strides \[2, 2, 1\]; both need one",
    "backbone.widths=4": "backbone.widths is 4; allowed is a list of whole numbers",
    "backbone.widths=[4.5,4,4]": "backbone.widths is .*a list of whole numbers",
    "backbone.strides=[4,4,4]": "the backbone has stride 64 and needs at least 64 px",
    "backbone=nin backbone.blocks=7": "blocks is 7; allowed are 3, 4, 5",
    "backbone=alexnet": "needs at least 31 px",
    "backbone=timm backbone.model_name=resnet1": "which timm does not have; did you mean resnet18",
    "backbone=timm backbone.model_name=vit_tiny_patch16_224": (
        r"does not take images of 16x16 px.*224\)\); use backbone.img_size=16"
    ),
    "backbone=torchvision backbone.model_name=resnet1": "which torchvision does not have; .*resnet18",
    "backbone=torchvision backbone.stages=[layer9]": "stages names 'layer9', .* it has conv1,",
    "backbone=torchvision +backbone.foo=1": "torchvision cannot build 'resnet18' with .*'foo'",
    "backbone=timm backbone.out_indices=[9]": "timm cannot build 'resnet18'.*out_indices.*9",
    "backbone=timm +backbone.foo=1": "timm cannot build 'resnet18'.*unexpected keyword argument 'foo'",
    "backbone=resnet18_small backbone.model_name=vgg11": "no plain ResNet stem; allowed is e.g. resnet18",
    "backbone=vit_tiny_small_images backbone.heads=5": "depth 6 and heads 5; .* multiple of 4 and of",
    "backbone=srresnet backbone.width=0": "width is 0, .* all must be at least 1",
    # tasks
    "task.copies=3": "copies is 3; allowed are 4 .* and 1",
    "task.lr_reference_batch=x": f"task.lr_reference_batch is 'x'; {WHOLE} or null",
    "+task.grid=3": "task.grid is not a key of task",
    "task=jigsaw task.grid=9": "the tiles are 1 px .*needs at least 4 px",
    "task=jigsaw task.tile=64": "task.tile is 64 px; allowed are 1 to 5, the size of its cell",
    "task=jigsaw task.permutations=1000000": "allowed are 2 to 362,880 orders of 9 tiles",
    "task=jigsaw task.permutations=4": "task.permutations_per_image is 8; allowed are 1 to 4",
    "task=jigsaw task.grey=1.5": "task.grey is 1.5; allowed are probabilities, 0 to 1",
    "task=jigsaw task.on=tokens": "the backbone is ConvNet; use backbone=vit_tiny_small_images or",
    "task=context_prediction task.on=tokens": "the backbone is ConvNet; use backbone=vit_tiny_small",
    "task=context_prediction task.on=pixels": "task.on is 'pixels'; allowed are tiles and tokens",
    "task=context_prediction task.tile=32": "need 96 px .*data.image_size is 16",
    "task=context_prediction task.colours=green": "colours",
    "task=inpainting task.hole=64": "task.hole is 64 px; allowed are 1 to 15",
    "task=inpainting task.mask=star": "task.mask is 'star'; allowed are center, square, blocks, region",
    "task=super_resolution task.scale=3": "task.scale is 3; allowed are 2, 4 and 8",
    "task=super_resolution task.input=small": "choose task.input=enlarged",
    "task=combined task.parts=[rotatoin]": r"task.parts is .*rotatoin.*; allowed are .*, jigsaw, .*rotation,",
    "task=combined task.parts=rotation": "task.parts is 'rotation'; allowed is a list of texts",
    "task=combined task.weights=[1]": r"task.weights is \[1\]; .* each of the 2 task.parts",
    "task=combined +task.options.rotation.copies=3": "task.options.rotation.copies is 3; allowed are 4",
    "task=combined +task.options.rotation.grid=3": "task.options.rotation.grid is not a key of task.options",
    "task=combined task.parts=[rotation,inpainting]": r"inpainting, whose discriminator needs an optimizer",
    "task=combined task.parts=[rotation,simclr] +task.options.simclr.temperature=0": (
        "task.options.simclr.temperature is 0; it must be above 0"
    ),
    "task=combined task.parts=[mae,rotation]": "the backbone is ConvNet; use backbone=vit_tiny_small_images",
    "task=combined data.channels=1": "colorization needs images with colours",
    "task=mae backbone=convnet": "the backbone is ConvNet; use backbone=vit_tiny_small_images",
    "task=mae task.mask_ratio=1": "task.mask_ratio is 1; allowed are above 0",
    "task=mae data.image_size=18": "18 px, which patches of 4 px do not divide; set data.image_size=20",
    "task=mae task.decoder_heads=5": "decoder_width is 96, decoder_depth 2 and decoder_heads 5; all must be",
    "task=combined task.options.simclr.temperature=1": (
        r"task\.options\.simclr is a new key of task\.options, .*: \+task\.options\.simclr=\.\.\. or"
    ),
    "task=simclr data.batch_size=1": r"the batch size is 1, and SimCLR compares .*; allowed are 2 and more",
    "task=combined task.parts=[rotation,byol] data.batch_size=1": r"batch size is 1, and Combined compares",
    "backbone=timm backbone.model_name=vit_tiny_patch16_224 backbone.img_size=30 data.image_size=30": (
        r"img_size is 30, and vit_tiny.* patches of 16 px, .* last 14 px .* backbone\.img_size=32 data\."
    ),
    "task=simclr task.hidden=0": "task.hidden is 0 and task.embedding 128; allowed: >= 1 and >= 1",
    "task=simclr task.temperature=0": "task.temperature is 0; it must be above 0",
    "task=simclr task.grey=1.5": "task.grey is 1.5; allowed are probabilities, 0",
    "task=simclr task.view_scale=-1": "task.view_scale is -1; allowed are above 0, up to 2",
    "task=simclr task.crop_scale=[1,0.2]": r"task.crop_scale is \[1, 0.2\]; allowed are 0 < smallest",
    "task=pirl task.tiles_weight=2": "task.tiles_weight is 2; allowed are 0 to 1, a share of the loss",
    "task=pirl task.grid=9": "the tiles are 1 px .*needs at least 4 px",
    "task=barlow_twins task.off_diagonal=-1": "task.off_diagonal is -1; allowed are 0 and above",
    "task=byol task.momentum=2": "task.momentum is 2; allowed are 0",
    "task=byol task.predictor=maybe": "task.predictor is 'maybe'; allowed is true or false",
    "task=dino task.prototypes=1": "task.local_views is 4 and task.prototypes 1; allowed: >= 0 and >= 2",
    "task=dino task.student_temperature=0": "task.student_temperature is 0; it must be above 0",
    "task=dino task.local_size=1": "task.local_size is 1 px, but the backbone has stride 4",
    "task=dino task.local_scale=[0,1]": r"task.local_scale is \[0, 1\]; allowed are 0 < smallest",
    "task=dino task.teacher_temperature=[0.04]": "allowed are two numbers above 0, the first and the last",
    "task=dino task.warmup=2": "task.warmup is 2; allowed is a share, 0 to 1",
    "task=lejepa task.sigreg=2": "task.sigreg is 2; allowed are 0 to 1",
    "task=lejepa task.views=1": "task.views is 1 and task.slices 256; allowed: >= 2 and >= 1",
    "task=vicreg task.variance=-1": "task.variance is -1; allowed are 0 and above",
    "task=simclr data.channels=4": "4 channels, whose colours are unknown; set task.saturation=0 task.hue=0",
    "task=colorization data.channels=1": "colorization needs images with colours",
    "task=colorization task.target=lab": "task.target is 'lab'; allowed are bins and l2",
    # optimizer and schedule, built only when training starts
    "optimizer.lr=-1": "optimizer.lr is -1; allowed is 0 or more",
    "optimizer.lr=1e-3x": f"optimizer.lr is '1e-3x'; {FINITE}",
    "optimizer.lr=nan": f"optimizer.lr is nan; {FINITE}",
    "optimizer.lr=inf": f"optimizer.lr is inf; {FINITE}",
    "optimizer.momentum=2": "optimizer.momentum is 2; allowed is 0 to below 1",
    "optimizer.weight_decay=-1": "optimizer.weight_decay is -1; allowed is 0 or more",
    "optimizer=adam optimizer.betas=[0.9,2]": r"optimizer.betas is \[0.9, 2\]; allowed is 0 to below 1",
    "+optimizer.betas=[0.9,0.9]": "optimizer.betas is not a key of optimizer",
    "optimizer=adam optimizer.betas=[0.9]": "optimizer.betas is .*a list of 2",
    "scheduler.warmup=1": "scheduler.warmup is 1; it is a fraction of the run, from 0 to below 1",
    "scheduler.div_factor=0": "scheduler.div_factor is 0; .*1 or more",
    "scheduler=cosine scheduler.final=-1": "scheduler.final is -1; .*0 to 1",
    "scheduler=multistep scheduler.milestones=[30]": "scheduler.milestones is 30; it is a fraction",
    "scheduler=multistep scheduler.milestones=0.5": "scheduler.milestones is 0.5; allowed is a list",
    "scheduler=multistep scheduler.gamma=0": "scheduler.gamma is 0; it must be above 0",
    # trainer
    "trainer.max_epochs=0": f"trainer.max_epochs is 0; {WHOLE}, 1 or more, or -1 with trainer.max_steps",
    "trainer.max_epochs=-1": "max_epochs and trainer.max_steps are both -1; a schedule needs an end",
    "trainer.max_epochs=null": f"trainer.max_epochs is None; {WHOLE}",
    "trainer.max_steps=-7": f"trainer.max_steps is -7; {WHOLE}, 1 or more, or -1",
    "trainer.limit_train_batches=0": f"trainer.limit_train_batches is 0; {BEGINS}",
    "trainer.limit_train_batches=1.5": f"trainer.limit_train_batches is 1.5; {BEGINS}",
    "trainer.limit_train_batches=0.001": "limit_train_batches is 0.001, which leaves none of 4 batches",
    "trainer.limit_val_batches=2.5": "trainer.limit_val_batches is 2.5; allowed is 0, a number of batches",
    "trainer.accumulate_grad_batches=0": f"trainer.accumulate_grad_batches is 0; {WHOLE}, 1 or more",
    "trainer.gradient_clip_val=-1": f"trainer.gradient_clip_val is -1; {FINITE} above 0, or null",
    "trainer.check_val_every_n_epoch=0": f"trainer.check_val_every_n_epoch is 0; {WHOLE}, 1 or more",
    "trainer.val_check_interval=1000": "trainer.val_check_interval is 1000; .*1 to 4, the batches",
    "trainer.log_every_n_steps=x": f"trainer.log_every_n_steps is 'x'; {WHOLE}",
    "trainer.precision=fp8": "trainer.precision is 'fp8'; allowed is auto, 32-true",
    "trainer.precision=bf16-true": "trainer.precision is 'bf16-true'; allowed is auto, 32-true, 16-mixed",
    "trainer.precision=64-true": "trainer.precision is '64-true'; allowed is auto",
    "trainer.accelerator=npu": "trainer.accelerator is 'npu'; allowed is auto, cpu, gpu",
    "trainer.devices=[0,1]": r"trainer.devices is \[0, 1\]; allowed is auto or a whole number, 1 or more",
    "trainer.num_nodes=0": f"trainer.num_nodes is 0; {WHOLE}, 1 or more",
    "trainer.num_nodes=two": f"trainer.num_nodes is 'two'; {WHOLE}, 1 or more",
    "trainer.launcher=mpi": "trainer.launcher is 'mpi'; allowed is local, slurm or torchrun",
    "compile=yes": "compile is 'yes'; allowed is auto or true or false",
    "cuda_graphs=1": "cuda_graphs is 1; allowed is auto or true or false",
    "trainer.strategy=magic": "trainer.strategy is 'magic'; allowed is auto, ddp, ",
    "trainer.strategy=ddp_spawn": "trainer.strategy is 'ddp_spawn'; allowed is auto, ddp, .* or fsdp",
    "trainer.strategy=ddp_notebook": "trainer.strategy is 'ddp_notebook'; allowed is auto, ddp, ",
    "trainer.strategy=deepspeed": "trainer.strategy is 'deepspeed'; allowed is auto, ddp, ",
    "trainer.accelerator=tpu": "Trainer refuses its options: Requirement 'torch_xla.*' not met",
    "+trainer.profiler=fast": "Trainer refuses its options: .*profiler",
    "+trainer.max_time=soon": "Trainer refuses its options: .*'soon'.* not a valid duration",
    "+trainer.callbacks=[]": r"trainer.callbacks cannot be given; use the group callbacks=\[",
    "+trainer.logger=true": r"trainer.logger cannot be given; use the group logger=\[",
    "+trainer.overfit_batches=2": "overfit_batches cannot be given; use data.pretrain_size=64",
    "+trainer.reload_dataloaders_every_n_epochs=1": "cannot be given; the loader draws a new order in every",
    "+trainer.plugins=[]": "trainer.plugins cannot be given; the run sets it itself",
    "task=inpainting task.r1=1.0 task.discriminator_norm=batch trainer.devices=2": "r1 is 1.0, and batch",
    "trainer.devices=2 data.heldout=1": "hold out 1 of .* has 2 processes; use data.heldout=2 or more",
    "trainer.limit_val_batches=0.001": "leaves none of 1 batches; use trainer.limit_val_batches=1",
    "trainer.sync_batchnorm=3": "trainer.sync_batchnorm is 3; allowed is true or false",
    "+trainer.foo=1": "trainer.foo is not a key of trainer",
    # callbacks and loggers
    "callbacks=[checkpoint] callbacks.checkpoint.every_n_steps=0": "every_n_steps is 0; it is null or above",
    "callbacks=[checkpoint] callbacks.checkpoint.every_minutes=soon": f"every_minutes is 'soon'; {FINITE}",
    "callbacks=[checkpoint] +callbacks.checkpoint.foo=3": "callbacks.checkpoint.foo is not a key .*dirpath",
    "callbacks=[online_knn] callbacks.online_knn.k=0": "callbacks.online_knn.k is 0; it must be above 0",
    "callbacks=[panel] callbacks.panel.images=0": "images is 0; a panel needs at least 1",
    "callbacks=[collapse] callbacks.collapse.images=8": "images is 8; allowed are 16 and more",
    "callbacks=[collapse] callbacks.collapse.every_n_epochs=0": "every_n_epochs is 0; it must be above 0",
    "task=colorization task.rebalance=0": "task.rebalance is 0; allowed are above 0, to 1",
    "callbacks=[progress] callbacks.progress.every_s=-1": "every_s is -1 .*seconds above 0",
    f"callbacks=[checkpoint] callbacks.checkpoint.dirpath={__file__}/x": ".*/x, and .*not a folder",
    "logger=[csv] logger.csv.save_dir=/dev/null": "save_dir is /dev/null, and /dev/null is not a folder",
    "callbacks=[checkpoint] callbacks.checkpoint.monitor=val/nothing": (
        "Checkpoint monitors val/nothing, which this run does not log; it logs val/acc, val/loss"
    ),
    f"{STOP}=accuracy": "EarlyStopping monitors accuracy, which this run does not log; it logs val/acc",
    f"data.heldout=0 {STOP}=val/loss": "monitors val/loss, .*it logs nothing, as it has no validation",
    "callbacks=[online_knn] data.heldout=0": "votes on held-out images, and data.heldout is 0; leave it out",
    "+callbacks.x._target_=pytorch_lightning.callbacks.RichProgressBar": "refuses .*enable_progress_bar",
    "+callbacks.x._target_=pytorch_lightning.nowhere.X": "which cannot be imported here: No module named",
    "+callbacks.x._target_=pytorch_lightning.callbacks.Timmer": "has no Timmer; did you mean Timer",
    "+callbacks.x._target_=pytorch_lightning.callbacks.X": "the module pytorch_lightning.callbacks has no X$",
    "task._target_=ssl_lightning.tasks.rotation.Rotaton": "no Rotaton; did you mean Rotation",
    "probe=[knn] probe.knn._target_=ssl_lightning.probes.knn.KNN": "no KNN; did you mean KNNProbe",
    "data._target_=ssl_lightning.data.fake.Fakes": "data._target_ is .*; .* has no Fakes; did you mean Fake",
    # arguments without a default, and arguments that every run gives
    "task=random task._target_=tests.refusals.test_config.Needy": (
        r"^task.sigmas must be given: \+task.sigmas=..., or a line in the config file task/random.yaml$"
    ),
    "+callbacks.x._target_=tests.refusals.test_config.needs_sigmas": (
        "callbacks.x.sigmas must be given: .* config file callbacks/x.yaml"
    ),
    "task=random +task.zzz=1": "task.zzz is not a key of task; it takes backbone_lr_factor, freeze",
    "+task.seed=1": "task.seed is not a key of task; it takes",
    "+task.spec=1": "task.spec is not a key of task; it takes",
    "+logger.x._target_=no_such_package.Logger": "imported here: No module named 'no_such_package'",
    "+logger.x._target_=tests.refusals.test_config.needs_package": (
        r"logger needs a package that is not installed here \(Requirement 'x>=1' not met\); .*logger=\[csv\]"
    ),
    # figures for a sweeper
    "objective=probe/knn/top1": "objective is 'probe/knn/top1'; this run gives pretext/val/loss, ",
    "objective=pretext/val/top1": "objective is 'pretext/val/top1'; this run gives pretext/val/loss",
    "objective=accuracy": "objective is 'accuracy'; this run gives pretext/val/loss",
    "data.heldout=0 objective=pretext/val/loss": "gives no figures, and holds out no images",
    "logger=[csv] logger.csv.save_dir=3": "logger.csv.save_dir is 3; allowed is text",
    # preparation of backbones, and probes
    "encoding.batch_norm=frozen": "encoding.batch_norm is 'frozen'; allowed are trained, recalibrated",
    "encoding.images=1": "encoding.images is 1; statistics need at least 2",
    "encoding.input=views": "the backbone of Rotation sees full images; set encoding.input=image",
    "probe=[linear] probe.linear.l2=0.1": "probe.linear.l2 is 0.1; allowed is a list",
    "probe=[linear] probe.linear.l2=[-1]": r"probe.linear.l2 is \[-1\]; .*all above 0",
    "probe=[linear] probe.linear.refit=maybe": "probe.linear.refit is 'maybe'; allowed is true or false",
    "probe=[knn,lowshot] probe.lowshot.ks=[0]": r"probe.lowshot.ks is \[0\]; at least one",
    "probe=[knn] probe.knn.temperature=-1": "probe.knn.temperature is -1; it must be above 0",
    "probe=[nonlinear] probe.nonlinear.stage=stage9": "'stage9'; the backbone has stage1, stage2, stage3",
    "data.heldout=0 probe=[linear]": "LinearProbe needs held-out images to select on, and data.heldout is 0",
    "data.heldout=0 probe=[nonlinear] probe.nonlinear.selection=heldout": (
        "NonLinearProbe needs held-out images to select on"
    ),
    "data.heldout=0 probe=[finetune] probe.finetune.selection=heldout": (
        "FineTuneProbe needs held-out images to select on"
    ),
    "probe=[nonlinear] probe.nonlinear.selection=best": "is 'best'; allowed are auto, heldout, last",
    "probe=[nonlinear] probe.nonlinear.labels=train+heldout probe.nonlinear.selection=heldout": (
        "set probe.nonlinear.selection=last"
    ),
    "probe=[finetune] probe.finetune.classifier=svm": "classifier is 'svm'; allowed are linear, conv",
    "probe=[finetune] probe.finetune.fractions=[1.0] probe.finetune.freeze_until=stage3": (
        "on stage3 allowed are stage1, stage2, null"
    ),
    "probe=[attentive] probe.attentive.stages=[9]": "'stage9'; the backbone has stage1, stage2, stage3",
    "probe=[attentive] probe.attentive.lrs=[0]": r"probe.attentive.lrs is \[0\]; at least one is needed",
    "data.heldout=0 probe=[attentive]": "AttentiveProbe needs held-out images to select on",
    "probe=[rankme] probe.rankme.images=0": "probe.rankme.images is 0; a rank needs at least 2",
    "probe=[finetune] probe.finetune.fractions=[2]": r"fractions is \[2\]; .*all in \(0, 1\]",
    "probe=[finetune] probe.finetune.fractions=[0.001]": r"is \[0.001\], at most 0 of 32 labelled",
    "probe=[embedding] probe.embedding.folder=/nowhere": "/nowhere, which is not a folder",
    f"probe=[embedding] probe.embedding.folder={ROOT}/conf": "conf holds no image; looked for bmp ",
    "probe=[segmentation]": "needs labels of the kind masks, and data fake has classes",
    "probe=[detection]": "needs labels of the kind boxes, and data fake has classes",
}


@pytest.fixture(scope="module", autouse=True)
def quiet():
    """Silence Lightning's line about missing GPUs, printed for every trainer."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def refused(overrides: list[str], folder: Path) -> Exception:
    """Build a run like `train.py`, and return the error that stops it."""
    base = [*TINY, *([] if overrides[0].startswith(("data=", "backbone=a")) else DATA)]
    own = overrides[0].startswith("backbone=") or on_a_vit(overrides)
    base += [] if own else ["backbone.widths=[4,4,4]"]
    base += ["data.image_size=16"] if overrides[0] == "backbone=alexnet" else []
    try:
        cfg = composed([*base, *overrides], folder)
        check_start(cfg)
        build_parts(cfg, folder)
    except Exception as error:
        while isinstance(error, InstantiationException) and isinstance(error.__cause__, Exception):
            error = error.__cause__  # like the worker
        return error
    raise AssertionError(f"{overrides} are accepted")


@pytest.mark.slow
@pytest.mark.parametrize("given", CASES)
def test_a_wrong_config_is_refused_before_any_work(given: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    error = refused(given.split(" "), folder)
    told = explained(error) if isinstance(error, HydraException) else str(error)
    assert re.search(CASES[given], told), told
    # errors that a worker prints in one line; others have a traceback
    assert isinstance(error, (ValueError, OSError, RunError, HydraException, OmegaConfBaseException))
    assert not folder.exists()


# one of each place that refuses: types, special keys, data, weights, backbones, probes
QUICK = ["seed=x", "data.batch_size=1e-3x", "trainer.max_epochs=0", "+task.grid=3", "data.image_size=2"]
QUICK += ["data=folder data.pretrain_dir=/nowhere", "init_from=/nowhere/x.ckpt"]
QUICK += ["probe=[knn,lowshot] probe.lowshot.ks=[0]"]


def test_the_error_names_the_given_value(tmp_path: Path) -> None:
    for given in QUICK:
        with pytest.raises((ValueError, OSError, RunError), match=CASES[given]):
            raise refused(given.split(" "), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_fitting_values_are_accepted(tmp_path: Path) -> None:
    """Show that the checks accept the tiny run, so that they refuse only the additions of a case."""
    with pytest.raises(AssertionError, match="are accepted"):
        refused(["seed=3"], tmp_path / "run")


class Needy(Rotation):
    """A task with a keyword that has no default."""

    def __init__(self, backbone, spec=None, *, sigmas, **base):
        super().__init__(backbone, spec, **base)


def needs_sigmas(sigmas: list) -> None:
    """Stand in for a callback with an argument that has no default."""


def needs_package() -> None:
    """Fail like a logger of Lightning whose package is not installed."""
    raise ModuleNotFoundError("Requirement 'x>=1' not met. HINT: Try running `pip install -U 'x>=1'`")


VIT = "backbone=timm backbone.model_name=vit_tiny_patch16_224"
WITH_ADVICE = [
    f"{VIT}",
    f"{VIT} task=jigsaw data.image_size=96",  # tiles of 24 px: dynamic sizes and padding
    f"{VIT} task=jigsaw data.image_size=192",  # tiles of 48 px
    f"{VIT} task=jigsaw data.image_size=96 +backbone.dynamic_img_size=true",
    "backbone=torchvision backbone.model_name=vit_b_32 data.image_size=64",
    "trainer.devices=2 data.heldout=1",
    "trainer.limit_val_batches=0.001",
    "+logger.x._target_=tests.refusals.test_config.needs_package",
]


@pytest.mark.slow
@pytest.mark.parametrize("given", WITH_ADVICE)
def test_the_advice_of_an_error_is_accepted(given: str, tmp_path: Path) -> None:
    overrides = given.split(" ")
    error = refused(overrides, tmp_path / "run")
    advised = re.findall(r"(?<=use ).*?=\S+(?: \+?backbone\S+)*", str(error))[-1].rstrip(",;").split(" ")
    keys = {each.lstrip("+").partition("=")[0] for each in advised}
    kept = [each for each in overrides if each.lstrip("+").partition("=")[0] not in keys]
    kept = [each for each in kept if keys != {"logger"} or not each.startswith("+logger.")]
    with pytest.raises(AssertionError, match="are accepted"):
        refused([*kept, *advised], tmp_path / "run")


def test_a_trial_step_changes_nothing(tmp_path: Path) -> None:
    parts = build_parts(
        composed([*TINY, *DATA, "backbone.widths=[4,4,4]"], tmp_path / "run"), tmp_path / "run"
    )
    weights = {name: value.clone() for name, value in parts.task.state_dict().items()}
    before = torch.get_rng_state()
    tried = try_step(parts.task)
    assert (tried.scores, tried.refusal) == (["loss", "acc"], None)
    assert set(tried.sizes) == {(16, 16)}
    assert torch.equal(torch.get_rng_state(), before)
    assert parts.task.training
    assert not parts.task.backbone._forward_hooks
    for name, value in parts.task.state_dict().items():
        assert torch.equal(value, weights[name]), name


LIMITS = {
    "data.max_labels=400": "data.max_labels is 400; 48 is used, since fake has 48 labelled images",
    "data.pretrain_size=1000": "data.pretrain_size is 1000; 32 is used, .* 32 pretraining images",
    "probe=[knn] probe.knn.ks=[20,200]": r"probe.knn.ks is \[20, 200\]; \[20\] is used, .* 32 labelled",
    "probe=[svm] probe.svm.folds=100": "probe.svm.folds is 100; 32 is used",
    "probe=[lowshot] probe.lowshot.ks=[1000]": r"probe.lowshot.ks is \[1000\]; \[8\] is used",
    "probe=[finetune]": r"probe.finetune.fractions is \[0.01, 0.1, 1.0\]; \[0.1, 1.0\] is used",
}


@pytest.mark.parametrize("given", LIMITS)
def test_limits_above_the_number_of_images_are_said_once(
    given: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logging.disable(logging.NOTSET)
    build_parts(composed([*TINY, *DATA, "backbone.widths=[4,4,4]", *given.split(" ")], tmp_path), tmp_path)
    (said,) = [r.getMessage() for r in caplog.records if r.name == "ssl_lightning.core.messages"]
    assert re.search(LIMITS[given], said), said


def test_defaults_fit_few_images_and_the_values_of_the_command_line_stay(tmp_path: Path) -> None:
    few = [*TINY, "data.num_train=20", "data.num_test=8", "data.image_size=16", "backbone.widths=[4,4,4]"]
    cfg = composed(few, tmp_path)
    cfg.overrides = few
    parts = build_parts(cfg, tmp_path)
    assert (parts.data.batch_size, parts.data.pretrain_images) == (16, 18)  # of 32, and 64 held-out images
    cfg = composed([*few, "data.batch_size=32"], tmp_path)
    cfg.overrides = [*few, "data.batch_size=32"]
    with pytest.raises(ValueError, match=r"data\.batch_size is 32; allowed for fake is 1 to 18"):
        build_parts(cfg, tmp_path)


AT_THE_TERMINAL = ["data.batch_size=many", "task=rotaton", "trainer.max_epochs=0", "data=folder"]


@pytest.mark.slow
@pytest.mark.parametrize("given", AT_THE_TERMINAL)
def test_the_line_reaches_the_terminal_without_a_traceback(given: str, tmp_path: Path) -> None:
    base = [*TINY, *([] if given.startswith("data=") else DATA), f"output_dir={tmp_path}", "name=x"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *base, given],
        capture_output=True, text=True, check=False, cwd=tmp_path, env=os.environ, timeout=120,
    )  # fmt: skip
    assert done.returncode != 0
    with pytest.raises(RuntimeError, match=CASES.get(given, "'many'; allowed is a whole")):
        raise RuntimeError(done.stderr)
    assert "Traceback" not in done.stdout + done.stderr
    assert "HYDRA_FULL_ERROR" not in done.stderr
    assert "Error executing job" not in done.stderr
    assert done.stderr.startswith("error: ")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]  # the name is free
    assert not (tmp_path / "rotation/fake/convnet/x").exists()
