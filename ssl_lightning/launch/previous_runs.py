"""What earlier runs left: whether a folder holds this very run, whether it is finished, and its figure.

Like `launch`, without torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ssl_lightning.artifacts.results import objective_value
from ssl_lightning.artifacts.results_schema import read_results
from ssl_lightning.artifacts.run_folder import CONFIG, RESULTS
from ssl_lightning.config.identity import config_sha256, differences
from ssl_lightning.config.trust import load_config
from ssl_lightning.core.errors import RunError
from ssl_lightning.core.untrusted import printable


def check_same_run(folder: Path, cfg: DictConfig) -> None:
    """Refuse to go on with a run of another config than this one.

    Raises:
        RunError: It is; the message names what differs.
    """
    try:
        stored = load_config(folder / CONFIG)
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
        facts = read_results(folder / RESULTS)["run"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:  # broken or foreign
        print(printable(f"{folder / RESULTS} does not count as finished: {error}"), flush=True)
        return None
    return dict(facts) if facts["status"] == "finished" else None


def finished_run(cfg: DictConfig) -> Path | None:
    """A folder under `output_dir` whose finished results come from the same config, if there is one."""
    digest = config_sha256(OmegaConf.to_container(cfg))  # type: ignore[arg-type]
    place = Path(cfg.output_dir) / cfg.choices.task / cfg.choices.data / cfg.choices.backbone
    for path in sorted(place.glob(f"*/{RESULTS}")):
        facts = finished_facts(path.parent)
        if facts and facts.get("config_sha256") == digest:
            return path.parent
    return None


def read_objective(folder: Path, objective: str | None) -> float | None:
    """Read the figure that a sweeper optimises (`artifacts.results.objective_value`), if any."""
    results = folder / RESULTS
    if objective is None or not results.exists():
        return None
    try:
        return objective_value(read_results(results), objective)
    except ValueError as error:
        raise RunError(f"error: {results}: {error}") from None
