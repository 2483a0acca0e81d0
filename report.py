"""From runs to a page: `python report.py benchmark=cifar10_six`, or without one, a row per series of runs."""

from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from ssl_lightning.core.atomic_files import DiskFullError
from ssl_lightning.core.errors import RunError
from ssl_lightning.report.write import write_report

CONF = Path(__file__).parent / "conf"
# Stored alone, without the folder around it: there `benchmark` is a group, whose files start a sweep
ConfigStore.instance().store("report", OmegaConf.load(CONF / "report.yaml"))


@hydra.main(version_base="1.3", config_path=None, config_name="report")
def main(cfg: DictConfig) -> None:
    """Read the results, print the table, write it and the page."""
    benchmark = CONF / "benchmark" / f"{cfg.benchmark}.yaml" if cfg.benchmark else None
    try:
        write_report(Path(cfg.outputs), Path(cfg.out), benchmark, cfg.budget)
    except (ValueError, DiskFullError) as error:
        raise RunError(f"error: {error}") from None


if __name__ == "__main__":
    main()
