"""Pretrain a backbone by a pretext task and probe it: `python train.py task=rotation data=cifar10`."""

import sys

import hydra
from omegaconf import DictConfig

from ssl_lightning.config.paths import conf_dir
from ssl_lightning.launch.resume import is_resume, resume_main
from ssl_lightning.launch.train import launch


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float | None:
    """Run the composed job in its own processes; return the figure that a sweeper optimises."""
    return launch(cfg)


if __name__ == "__main__":
    if is_resume(sys.argv[1:]):
        sys.exit(resume_main(sys.argv[1:], conf_dir()))
    main()
