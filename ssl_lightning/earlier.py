"""What earlier runs left: whether a folder holds this very run, whether it is finished, and its figure.

Like `launch`, without torch.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ssl_lightning.errors import RunError
from ssl_lightning.foreign import load_config
from ssl_lightning.reading import printable
from ssl_lightning.results import FILE_NAME, config_sha256, differences, objective_value
from ssl_lightning.results_file import read_results

CONFIG_NAME = "config.yaml"
NEXT_CONFIG = ".next-config.yaml.tmp"  # of a run that is resumed, until nothing of it was refused


def accept_config(folder: Path) -> None:
    """Let the config of a resumed run, which has passed every check, take the place of the one before."""
    os.replace(folder / NEXT_CONFIG, folder / CONFIG_NAME)


def check_same_run(folder: Path, cfg: DictConfig) -> None:
    """Refuse to go on with a run of another config than this one.

    Raises:
        RunError: It is; the message names what differs.
    """
    try:
        stored = load_config(folder / CONFIG_NAME)
    except ValueError as error:
        raise RunError(f"error: {error}; move the folder away, or give another output_dir=") from None
    before, after = (OmegaConf.to_container(each) for each in (stored, cfg))
    if lines := differences(before, after):  # type: ignore[arg-type]
        raise RunError(
            f"error: {folder} holds a run of another config:\n"
            + "\n".join(f"  {line}" for line in lines)
            + "\n"
            "move the folder away, or give another output_dir="
        )


def finished_facts(folder: Path) -> dict[str, Any] | None:
    """What the results of a run that came to its end say of it; None if the folder holds none."""
    try:
        facts = read_results(folder / FILE_NAME)["run"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:  # broken or foreign
        print(printable(f"{folder / FILE_NAME} does not count as finished: {error}"), flush=True)
        return None
    return dict(facts) if facts["status"] == "finished" else None


def finished_run(cfg: DictConfig) -> Path | None:
    """A folder under `output_dir` whose finished results come from the same config, if there is one."""
    digest = config_sha256(OmegaConf.to_container(cfg))  # type: ignore[arg-type]
    place = Path(cfg.output_dir) / cfg.choices.task / cfg.choices.data / cfg.choices.backbone
    for path in sorted(place.glob(f"*/{FILE_NAME}")):
        facts = finished_facts(path.parent)
        if facts and facts.get("config_sha256") == digest:
            return path.parent
    return None


def read_objective(folder: Path, objective: str | None) -> float | None:
    """Read the figure that a sweeper optimises (`ssl_lightning.results.objective_value`), if any."""
    results = folder / FILE_NAME
    if objective is None or not results.exists():
        return None
    try:
        return objective_value(read_results(results), objective)
    except ValueError as error:
        raise RunError(f"error: {results}: {error}") from None
