"""Launch of an evaluation: probes on a finished run or an external backbone; imports no torch."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from ssl_lightning.artifacts.run_folder import (
    BACKBONE_CONFIG,
    CHECKPOINTS,
    CONFIG,
    NEXT_CONFIG,
    NEXT_EVALUATION,
)
from ssl_lightning.config.composition import command_overrides, drop_unchosen, resolve
from ssl_lightning.config.identity import leaves
from ssl_lightning.config.keys import KEYS
from ssl_lightning.core.entry import command_line
from ssl_lightning.core.errors import RunError
from ssl_lightning.core.untrusted import read_json
from ssl_lightning.launch.cluster import check_name, restarts
from ssl_lightning.launch.previous_runs import read_objective
from ssl_lightning.launch.ranks import start_ranks
from ssl_lightning.launch.resume import check_loaded, read_config
from ssl_lightning.launch.rows import key_of
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
MODE = "next-evaluate"  # of the worker process
MAX_BYTES = 1 << 20  # of a backbone.json
COLOURS = ("RGB", "grey")  # input colours with the mean and deviation of the images
ANY = "++"  # Hydra's mark of an override of any key, known or not


def launch_evaluation(cfg: DictConfig) -> float | None:
    """Evaluate the run or backbone named by a composed `conf/evaluate.yaml`.

    Returns:
        The figure named by `cfg.objective`, or None.

    Raises:
        RunError: The run or a file is absent or does not fit, or a process failed.
    """
    hydra = HydraConfig.get()
    cfg, given = drop_unchosen(cfg, hydra), as_given(command_overrides(hydra))
    if hydra.mode is RunMode.MULTIRUN:
        cfg.name = f"{cfg.name}_{hydra.job.num}"  # a folder for each job
    folder = Path(cfg.run or cfg.run_dir).expanduser().resolve()
    if cfg.run:
        resolved = evaluation_config(folder, cfg, given)
        try:
            start_run(folder, resolved, lambda: save_config(resolved, folder, NEXT_EVALUATION), MODE)
        finally:
            if check_start(resolved).is_first:
                with contextlib.suppress(OSError):  # the folder is read-only; the first error says so
                    (folder / NEXT_EVALUATION).unlink(missing_ok=True)  # still there if it was refused
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


def with_data_of_run(arguments: Sequence[str]) -> list[str]:
    """Let `data.x=` beside `run=` name any key: it changes the run's own data, which Hydra does not know.

    >>> with_data_of_run(["run=outputs/x", "data.train_dir=a"])
    ['run=outputs/x', '++data.train_dir=a']
    >>> with_data_of_run(["run=outputs/x", "data=cifar10", "data.heldout=9"])
    ['run=outputs/x', 'data=cifar10', 'data.heldout=9']
    """
    has_run = any(argument.startswith("run=") for argument in arguments)
    if not has_run or any(argument.startswith("data=") for argument in arguments):
        return list(arguments)
    return [f"{ANY}{each}" if each.startswith("data.") else each for each in arguments]


def as_given(overrides: Sequence[str]) -> list[str]:
    """Return the overrides without the marks of `with_data_of_run`."""
    return [each.removeprefix(ANY) if each.startswith(f"{ANY}data.") else each for each in overrides]


def evaluation_config(folder: Path, cfg: DictConfig, given: list[str]) -> DictConfig:
    """Return the config of a run, with the groups named on the command line taken from `cfg`.

    Raises:
        RunError: The folder holds no run, or an override cannot apply to an existing run.
    """
    stored = read_config(folder)
    touched = {override.lstrip("+~").partition("=")[0].partition(".")[0] for override in given}
    if wrong := sorted(touched & set(REFUSED)):
        raise RunError(f"error: {', '.join(wrong)} cannot be given with run=; the run has its own")
    if "data" in touched and not any(each.startswith("data=") for each in given):
        cfg.data = changed_data(stored, cfg, given, folder)
    new = resolve(cfg)
    if "trainer" in touched and not any(each.startswith("trainer=") for each in given):
        new.trainer = changed_trainer(stored, new, given)
    for group in TAKEN:
        if group in touched or group not in stored:
            stored[group] = new[group]
    if any(each.startswith("data=") for each in given):
        stored.choices.data = new.choices.data
    stored.update(checkpoint=new.checkpoint, callbacks={}, logger={}, overrides=given)
    stored.update(compile=False, cuda_graphs=False)  # they need the compiler and the GPU of the training
    if (folder / CHECKPOINTS).is_dir():
        stored.init_from = None  # the checkpoint replaces it; without checkpoints the run kept these weights
    check_loaded(stored, folder, folder / CONFIG, _keys_of(new, touched))
    return stored


def changed_data(stored: DictConfig, cfg: DictConfig, given: list[str], folder: Path) -> DictConfig:
    """Return the data of a run with the keys that the command line changes.

    The run keeps its mean and deviation, also for other images.

    Args:
        stored: Config of the run.
        cfg: Composed config, whose `data` holds the changed keys.
        given: Overrides of the command line.
        folder: The run folder.

    Raises:
        RunError: The data of the run have no such key.
    """
    data, new = stored.data.copy(), cast(DictConfig, cfg.data)
    keys = _keys_in("data", given)
    for key in keys:
        if key not in data:
            takes = ", ".join(sorted(str(known) for known in data if known != "_target_"))
            raise RunError(
                f"error: data.{key} is not a key of the run's data={stored.choices.data}, which takes {takes}"
            )
        data[key] = OmegaConf.to_container(new)[key]  # type: ignore[call-overload, index]
    if data.get("mean") is None and not {"mean", "std"} & set(keys):
        data.update(run_statistics(folder))
    return data


def changed_trainer(stored: DictConfig, new: DictConfig, given: list[str]) -> DictConfig:
    """Return the trainer of a run with the keys that the command line changes; the precision stays.

    Args:
        stored: Config of the run.
        new: Composed config, resolved, whose `trainer` holds the changed keys.
        given: Overrides of the command line.
    """
    changed = {key: new.trainer[key] for key in _keys_in("trainer", given)}
    return cast(DictConfig, OmegaConf.merge(stored.trainer, changed))


def _keys_in(group: str, given: Sequence[str]) -> list[str]:
    """Return the keys of a group that overrides set, without those that they delete."""
    names = [key_of(each) for each in given if not each.startswith("~")]
    return [name.split(".")[1] for name in names if name.startswith(f"{group}.")]


def run_statistics(folder: Path) -> dict[str, Any]:
    """Return mean and deviation of the images of a run, from its export; nothing without one."""
    try:
        found = read_json(folder / BACKBONE_CONFIG, MAX_BYTES)["input"]
        return {key: found[key] for key in ("mean", "std")} if found["colour"] in COLOURS else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _keys_of(new: DictConfig, touched: set[str]) -> list[str]:
    """Return the dotted keys of the groups taken from the command line."""
    return list(leaves({group: OmegaConf.to_container(new[group]) for group in TAKEN if group in touched}))
