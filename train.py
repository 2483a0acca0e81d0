"""Pretrain a backbone by a pretext task and probe it: `python train.py task=rotation data=cifar10`."""

import sys

from ssl_lightning.launch.commands import train_main

if __name__ == "__main__":
    sys.exit(train_main(sys.argv[1:]))
