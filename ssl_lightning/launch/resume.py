"""Launch of a resumed run, `resume=<run folder>`: its config, with the few keys that may change."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from ssl_lightning.artifacts.run_folder import CONFIG, NEXT_CONFIG, no_run_folder
from ssl_lightning.config.composition import drop_unchosen
from ssl_lightning.config.identity import ABSENT, leaves
from ssl_lightning.config.keys import KEYS
from ssl_lightning.config.misspelled import CONFIG_ERRORS, explained
from ssl_lightning.config.plugins import use_plugins
from ssl_lightning.config.trust import CACHES, check_links, check_trusted, given_overrides, load_config
from ssl_lightning.core.cache import cache_root
from ssl_lightning.core.errors import RunError, print_error
from ssl_lightning.launch.rows import key_of, rows_of
from ssl_lightning.launch.train import NEXT, check_start, save_config, start_run

# Length, hardware, paths and logging; none of these keys changes the result of a step
MAY_CHANGE = tuple(key.name for key in KEYS if key.resume)
LENGTH = tuple(key.name for key in KEYS if key.resume and key.science)


def resume_main(arguments: Sequence[str], config_dir: Path) -> int:
    """Resume the run named by `resume=`; return the exit status.

    All checks happen before any file in the folder changes. Hydra's entry point is not used, since it would
    first create another run folder.

    Args:
        arguments: Command line: `resume=<folder>` and overrides in Hydra's grammar.
        config_dir: The folder `conf`.
    """
    try:
        flags = [argument for argument in arguments if argument.startswith("-")]
        if flags:
            raise RunError(f"error: resume= resumes one run and does not take {' '.join(flags)}")
        (name,) = [a.partition("=")[2] for a in arguments if is_resume([a])][-1:]
        if not name:
            raise RunError(
                "error: resume= names no folder; give a run folder, as train.py prints it at its end"
            )
        folder = Path(name).expanduser().resolve()
        overrides = [a for a in arguments if not is_resume([a])]
        cfg = resumed_config(folder, overrides, config_dir)
        check_start(cfg)
        check_checkpoint(folder, cfg)
        start_run(folder, cfg, lambda: save_config(cfg, folder, NEXT_CONFIG), NEXT)
    except (RunError, ValueError, OSError) as error:
        return print_error(error)
    return 0


def is_resume(arguments: Sequence[str]) -> bool:
    """Whether a command line names a run to resume.

    >>> is_resume(["task=rotation", "resume=outputs/x"]), is_resume(["resume=null"]), is_resume([])
    (True, False, False)
    """
    return any(a.startswith("resume=") and a != "resume=null" for a in arguments)


def resumed_config(folder: Path, overrides: Sequence[str], config_dir: Path) -> DictConfig:
    """Return the resolved config of a run with overrides applied.

    The changed keys are the differences between the configs composed with and without the overrides.

    Raises:
        RunError: The folder holds no run, an override is wrong, or it would change results.
    """
    stored = read_config(folder)
    first = given_overrides(stored)
    use_plugins()
    try:
        with initialize_config_dir(str(config_dir.resolve()), version_base="1.3"):
            before, after = (_flat([*first, *extra]) for extra in ([], overrides))
    except CONFIG_ERRORS as error:
        raise RunError(f"error: {explained(error)}") from None
    # an absent key is not null: a callback that is left out has keys that are null
    keys = before.keys() | after.keys()
    changed = [key for key in keys if before.get(key, ABSENT) != after.get(key, ABSENT)]
    refused = sorted(key for key in changed if not _may_change(key))
    # another class has other keys, which tell a user nothing
    other = tuple(key.removesuffix("_target_") for key in refused if key.endswith("._target_"))
    refused = [key for key in refused if key.endswith("._target_") or not key.startswith(other)]
    if refused:
        lines = [f"  {key}: {before.get(key, ABSENT)} -> {after.get(key, ABSENT)}" for key in refused]
        raise RunError(
            "error: resuming would change what the run computes:\n" + "\n".join(lines) + "\n"
            f"allowed are {', '.join(MAY_CHANGE)}. A new run may start from its weights: init_from={folder}"
        )
    what, lengths = rows_of(folder), [key for key in LENGTH if key in changed]
    if what and lengths:
        raise RunError(
            f"error: {folder} is a row of the {what} in {folder.parent}, whose rows train equally long, so "
            f"{lengths[0]} cannot change; copy the folder elsewhere and resume the copy"
        )
    for key in changed:
        if key in after:
            OmegaConf.update(stored, key, after[key], force_add=True)
        else:
            _delete(stored, key)
    del stored["overrides"]
    OmegaConf.resolve(stored)  # interpolations of the overrides
    again = {key_of(each) for each in overrides}
    stored.overrides = [*(each for each in first if each[0] in "+~" or key_of(each) not in again), *overrides]
    given = {*changed, *again}
    check_loaded(stored, folder, folder / CONFIG, given)
    return stored


def read_config(folder: Path) -> DictConfig:
    """Read the config of a run folder, with paths moved to where the folder is now; then call `check_loaded`.

    Raises:
        RunError: The folder is absent, holds no run of this project, or has a link that leads out.
    """
    path = folder / CONFIG
    if not os.path.lexists(path):
        raise RunError(f"error: {no_run_folder(folder)}")
    try:
        check_links(folder)
        stored = load_config(path)
    except ValueError as error:
        raise RunError(f"error: {error}") from None
    content = OmegaConf.to_container(stored)
    here = cast(DictConfig, OmegaConf.create(moved(content, str(stored.run_dir), str(folder))))
    here.run_dir = str(folder)
    for key in CACHES:  # a cache of another machine becomes this user's
        place = OmegaConf.select(here, key)
        if place and not Path(str(place)).expanduser().is_dir():
            OmegaConf.update(here, key, str(cache_root()))
    return here


def moved(node: Any, old: str, new: str) -> Any:
    """Replace the folder `old` by `new` in every path of nested dictionaries and lists."""
    if isinstance(node, dict):
        return {key: moved(value, old, new) for key, value in node.items()}
    if isinstance(node, list):
        return [moved(value, old, new) for value in node]
    if isinstance(node, str) and (node == old or node.startswith(old + "/")):
        return new + node[len(old) :]
    return node


def check_loaded(cfg: DictConfig, folder: Path, source: Path, given: Collection[str]) -> None:
    """Call `check_trusted` on a config from a run folder, changed by the command line.

    Raises:
        RunError: The config is refused.
    """
    try:
        check_trusted(cast(dict[str, Any], OmegaConf.to_container(cfg)), folder, source, given)
    except ValueError as error:
        raise RunError(f"error: {error}") from None


def check_checkpoint(folder: Path, cfg: DictConfig) -> None:
    """Raise if the checkpoint of a folder cannot be resumed to `trainer.max_epochs` and `trainer.max_steps`.

    Raises:
        ValueError: All checkpoints are torn, or the newest one is beyond one of them.
    """
    from ssl_lightning.artifacts.checkpoints import load_checkpoint, resume_point

    newest = resume_point(folder)
    if newest is None:
        print(f"{folder} holds no checkpoint yet; the run starts from the beginning")
        return
    content = load_checkpoint(newest)
    steps = _steps(content)
    reached = {"epoch": content.get("epoch"), "step": steps}
    for key, at in (("max_epochs", "epoch"), ("max_steps", "step")):
        end, done = cfg.trainer[key], reached[at]
        if (
            isinstance(done, int) and isinstance(end, int) and 0 <= end < done
        ):  # the worker refuses other types
            raise ValueError(f"trainer.{key} is {end}, and the run is at {at} {done}")
    for key, done in (("max_epochs", _epochs(content)), ("max_steps", steps)):
        if isinstance(done, int) and done == cfg.trainer[key]:
            print(f"the training is complete (trainer.{key} is {done}); only what follows it runs again")


def _steps(checkpoint: Mapping[str, Any]) -> Any:
    """Return the number of steps as `trainer.max_steps` counts them: once for all optimizers of a task."""
    from ssl_lightning.artifacts.checkpoints import FIRST_STEPS

    if len(checkpoint.get("optimizer_states", ())) == 1:
        return checkpoint.get("global_step")
    older = _inside(checkpoint, "epoch_loop.state_dict", "_batches_that_stepped")  # without accumulation
    return checkpoint.get(FIRST_STEPS, older)


def _epochs(checkpoint: Mapping[str, Any]) -> Any:
    """Return the number of complete epochs."""
    return _inside(checkpoint, "epoch_progress", "current", "processed")


def _inside(checkpoint: Mapping[str, Any], *keys: str) -> Any:
    """Return an entry of the state of the fit loop, or None."""
    node: Any = checkpoint
    for key in ("loops", "fit_loop", *keys):
        node = node.get(key) if isinstance(node, Mapping) else None
    return node


def _may_change(key: str) -> bool:
    return any(key == allowed or key.startswith(allowed + ".") for allowed in MAY_CHANGE)


def _flat(overrides: list[str]) -> dict[str, Any]:
    """Compose overrides; return the leaves by dotted name, interpolations unresolved."""
    cfg = compose("train", overrides, return_hydra_config=True)
    chosen = cast(dict[str, Any], OmegaConf.to_container(drop_unchosen(cfg, cfg.hydra)))
    return leaves({key: value for key, value in chosen.items() if key != "hydra"})


def _delete(cfg: DictConfig, key: str) -> None:
    """Remove a leaf, and the option of a group that becomes empty, such as `logger.csv`."""
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else cfg
    if isinstance(node, DictConfig) and name in node:
        del node[name]
        if not node and "." in parent:
            _delete(cfg, parent)
