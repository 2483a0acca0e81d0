"""Probe the backbone of a run or of a file: `python evaluate.py run=<run folder> probe=[linear,knn]`."""

import hydra
from omegaconf import DictConfig

from ssl_lightning.launch.evaluate import launch_evaluation


@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
def main(cfg: DictConfig) -> float | None:
    """Evaluate in its own processes; return the figure that a sweeper optimises."""
    return launch_evaluation(cfg)


if __name__ == "__main__":
    main()
