"""Write the backbone of a run for another library: `python export.py run=<run folder> format=onnx`."""

import hydra
from omegaconf import DictConfig

from ssl_lightning.launch.export import run_export


@hydra.main(version_base="1.3", config_path="conf", config_name="export")
def main(cfg: DictConfig) -> None:
    """Export the backbone and print the largest difference of its outputs."""
    run_export(cfg)


if __name__ == "__main__":
    main()
