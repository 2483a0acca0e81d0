"""Launch of an evaluation: probes on a finished run or an external backbone; imports no torch."""

from __future__ import annotations

import os
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from ssl_lightning.artifacts.run_folder import CHECKPOINTS, CONFIG, EVALUATION, NEXT_CONFIG
from ssl_lightning.config.composition import drop_unchosen, resolve
from ssl_lightning.config.identity import leaves
from ssl_lightning.config.keys import KEYS
from ssl_lightning.core.entry import command_line
from ssl_lightning.core.errors import RunError
from ssl_lightning.launch.cluster import check_name, restarts
from ssl_lightning.launch.previous_runs import read_objective
from ssl_lightning.launch.ranks import start_ranks
from ssl_lightning.launch.resume import check_loaded, read_config
from ssl_lightning.launch.train import (
    NEXT,
    check_start,
    locked_new,
    run_locked,
    save_config,
    start_run,
    with_overrides,
)

# Keys given with run=: taken in place of the run's own, or refused
TAKEN = tuple(key.name for key in KEYS if key.evaluate == "taken")
REFUSED = tuple(key.name for key in KEYS if key.evaluate == "refused")
MODE = "evaluate"


def launch_evaluation(cfg: DictConfig) -> float | None:
    """Evaluate the run or backbone named by a composed `conf/evaluate.yaml`.

    Returns:
        The figure named by `cfg.objective`, or None.

    Raises:
        RunError: The run or a file is absent or does not fit, or a process failed.
    """
    hydra = HydraConfig.get()
    cfg, given = drop_unchosen(cfg, hydra), list(hydra.overrides.task)
    if hydra.mode is RunMode.MULTIRUN:
        cfg.name = f"{cfg.name}_{hydra.job.num}"  # a folder for each job
    folder = Path(cfg.run or cfg.run_dir).expanduser().resolve()
    if cfg.run:
        resolved = evaluation_config(folder, cfg, given)
        start_run(folder, resolved, lambda: save_config(resolved, folder, EVALUATION), MODE)
        return read_objective(folder, cfg.objective)
    if cfg.weights is None and not cfg.backbone.get("pretrained"):
        raise RunError(
            "error: nothing to evaluate; give run=<run folder>, weights=<file>, or for a timm model "
            f"backbone.pretrained=true (an untrained backbone: {command_line('train')} task=random)"
        )
    cfg.run_dir = str(folder)
    place = check_start(resolve(cfg))
    check_name(place, given)
    if not place.is_first:
        start_ranks(folder, place, NEXT)
        return read_objective(folder, cfg.objective)
    restarted = restarts(os.environ) > 0
    with locked_new(folder, cfg, may_exist=restarted, use="add to its results with run=") as (
        folder,
        cfg,
    ):
        run_locked(folder, place, lambda: save_config(with_overrides(cfg, given), folder, NEXT_CONFIG), NEXT)
    return read_objective(folder, cfg.objective)


def evaluation_config(folder: Path, cfg: DictConfig, given: list[str]) -> DictConfig:
    """Return the config of a run, with the groups named on the command line taken from `cfg`.

    Raises:
        RunError: The folder holds no run, or an override cannot apply to an existing run.
    """
    stored = read_config(folder)
    touched = {override.lstrip("+~").partition("=")[0].partition(".")[0] for override in given}
    if wrong := sorted(touched & set(REFUSED)):
        raise RunError(f"error: {', '.join(wrong)} cannot be given with run=; the run has its own")
    new = resolve(cfg)
    for group in TAKEN:
        if group in touched or group not in stored:
            stored[group] = new[group]
    if "data" in touched:
        stored.choices.data = new.choices.data
    stored.update(checkpoint=new.checkpoint, callbacks={}, logger={}, overrides=given)
    if (folder / CHECKPOINTS).is_dir():
        stored.init_from = None  # the checkpoint replaces it; without checkpoints the run kept these weights
    check_loaded(stored, folder, folder / CONFIG, _keys_of(new, touched))
    return stored


def _keys_of(new: DictConfig, touched: set[str]) -> list[str]:
    """Return the dotted keys of the groups taken from the command line."""
    return list(leaves({group: OmegaConf.to_container(new[group]) for group in TAKEN if group in touched}))
