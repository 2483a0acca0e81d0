"""Write the table and the page of stored runs: `python report.py benchmark=cifar10_six`."""

from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from ssl_lightning.config.paths import conf_dir
from ssl_lightning.core.atomic_files import DiskFullError
from ssl_lightning.core.errors import RunError
from ssl_lightning.report.write import write_report

# Stored without the rest of conf/, where `benchmark` is a group whose files start a sweep
ConfigStore.instance().store("report", OmegaConf.load(conf_dir() / "report.yaml"))


@hydra.main(version_base="1.3", config_path=None, config_name="report")
def main(cfg: DictConfig) -> None:
    """Read the results, print the table, and write it with the page."""
    benchmark = conf_dir() / "benchmark" / f"{cfg.benchmark}.yaml" if cfg.benchmark else None
    try:
        write_report(Path(cfg.outputs), Path(cfg.out), benchmark, cfg.budget)
    except (ValueError, DiskFullError) as error:
        raise RunError(f"error: {error}") from None


if __name__ == "__main__":
    main()
