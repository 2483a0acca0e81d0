"""What earlier runs left: whether a folder holds this very run, whether it is finished, and its figure.

Like `launch`, without torch.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ssl_lightning.errors import RunError

CONFIG_NAME = "config.yaml"


def check_same_run(folder: Path, cfg: DictConfig) -> None:
    """Refuse to go on with a run of another config than this one.

    Raises:
        RunError: It is; the message names what differs.
    """
    from ssl_lightning.results import differences

    before, after = (OmegaConf.to_container(each) for each in (OmegaConf.load(folder / CONFIG_NAME), cfg))
    if lines := differences(before, after):  # type: ignore[arg-type]
        raise RunError(
            f"error: {folder} holds a run of another config:\n"
            + "\n".join(f"  {line}" for line in lines)
            + "\n"
            "move the folder away, or give another output_dir="
        )


def finished_facts(folder: Path) -> dict[str, Any] | None:
    """What the results of a run that came to its end say of it; None if the folder holds none."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # absent, foreign or broken
        facts = json.loads((folder / "results.json").read_text())["run"]
        return dict(facts) if facts["status"] == "finished" else None
    return None


def finished_run(cfg: DictConfig) -> Path | None:
    """A folder under `output_dir` whose finished results come from the same config, if there is one."""
    from ssl_lightning.results import FILE_NAME, config_sha256

    digest = config_sha256(OmegaConf.to_container(cfg))  # type: ignore[arg-type]
    place = Path(cfg.output_dir) / cfg.choices.task / cfg.choices.data / cfg.choices.backbone
    for path in sorted(place.glob(f"*/{FILE_NAME}")):
        facts = finished_facts(path.parent)
        if facts and facts.get("config_sha256") == digest:
            return path.parent
    return None


def read_objective(folder: Path, objective: str | None) -> float | None:
    """Read the figure that a sweeper optimises (`ssl_lightning.results.objective_value`), if any."""
    results = folder / "results.json"
    if objective is None or not results.exists():
        return None
    from ssl_lightning.results import objective_value

    try:
        return objective_value(json.loads(results.read_text()), objective)
    except ValueError as error:
        raise RunError(f"error: {error}") from None
