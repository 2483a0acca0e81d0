"""From runs to a page: `python report.py benchmark=cifar10_six`, or without one, a row per series of runs."""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from ssl_lightning.launch import RunError
from ssl_lightning.report.write import write_report

BENCHMARKS = Path(__file__).parent / "conf" / "benchmark"


@hydra.main(version_base="1.3", config_path="conf/report", config_name="report")
def main(cfg: DictConfig) -> None:
    """Read the results, print the table, write it and the page."""
    benchmark = BENCHMARKS / f"{cfg.benchmark}.yaml" if cfg.benchmark else None
    try:
        write_report(Path(cfg.outputs), Path(cfg.out), benchmark, cfg.budget)
    except ValueError as error:
        raise RunError(f"error: {error}") from None


if __name__ == "__main__":
    main()
