"""Read earlier runs: their config, whether they finished, and their results; imports no torch."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from ssl_lightning.artifacts.results import objective_value, read_results
from ssl_lightning.artifacts.run_facts import RunFacts
from ssl_lightning.artifacts.run_folder import CONFIG, RESULTS
from ssl_lightning.config.identity import config_sha256, differences
from ssl_lightning.config.trust import load_config
from ssl_lightning.core.errors import RunError
from ssl_lightning.core.untrusted import printable


def check_same_run(folder: Path, cfg: DictConfig) -> None:
    """Raise if a folder holds a run of another config.

    Raises:
        RunError: The message names the keys that differ.
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


def finished_facts(folder: Path) -> RunFacts | None:
    """Return the facts of a finished run, or None if the folder holds no finished results."""
    try:
        facts = read_results(folder / RESULTS).run
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:  # broken or foreign
        print(printable(f"{folder / RESULTS} does not count as finished: {error}"), flush=True)
        return None
    return facts if facts.status == "finished" else None


def finished_run(cfg: DictConfig) -> Path | None:
    """Return a folder under `output_dir` with finished results of the same config, or None."""
    digest = config_sha256(OmegaConf.to_container(cfg))  # type: ignore[arg-type]
    place = Path(cfg.output_dir) / cfg.choices.task / cfg.choices.data / cfg.choices.backbone
    for path in sorted(place.glob(f"*/{RESULTS}")):
        facts = finished_facts(path.parent)
        if facts and facts.config_sha256 == digest:
            return path.parent
    return None


def read_objective(folder: Path, objective: str | None) -> float | None:
    """Read the figure that a sweeper optimises (`artifacts.results.objective_value`), or return None."""
    results = folder / RESULTS
    if objective is None or not results.exists():
        return None
    try:
        return objective_value(read_results(results), objective)
    except ValueError as error:
        raise RunError(f"error: {results}: {error}") from None
