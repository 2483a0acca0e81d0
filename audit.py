"""Find the shortcuts that a task's guards prevent: `python audit.py task=jigsaw data.image_size=48`."""

import hydra
from omegaconf import DictConfig

from ssl_lightning.launch.audit import run_audit


@hydra.main(version_base="1.3", config_path="conf", config_name="audit")
def main(cfg: DictConfig) -> None:
    """Train with all guards, then without each one, and print the table."""
    run_audit(cfg)


if __name__ == "__main__":
    main()
