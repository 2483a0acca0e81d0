"""Commands that Hydra composes: train, evaluate, compare, report, audit, export; imports no torch."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from ssl_lightning.config.composition import quote_paths
from ssl_lightning.config.misspelled import CONFIG_ERRORS, explained
from ssl_lightning.config.paths import conf_dir
from ssl_lightning.config.plugins import use_plugins
from ssl_lightning.core.entry import command_line
from ssl_lightning.core.errors import RunError, print_error
from ssl_lightning.launch.help import help_text, is_help
from ssl_lightning.launch.sweep import failed_jobs_named

FULL_ERROR = "HYDRA_FULL_ERROR"  # Hydra's own variable: with 1 it raises errors and prints nothing about them


def train_main(arguments: Sequence[str]) -> int:
    """Pretrain and probe, or resume a run; return the exit status.

    Args:
        arguments: Overrides and flags in Hydra's grammar, or `resume=<run folder>` and overrides.
    """
    from ssl_lightning.launch.resume import is_resume, resume_main
    from ssl_lightning.launch.train import launch

    arguments = quote_paths(arguments)
    if is_resume(arguments) and not is_help(arguments):
        return resume_main(arguments, conf_dir())
    return _compose_and_run(launch, "train", arguments)


def evaluate_main(arguments: Sequence[str]) -> int:
    """Probe the backbone of a run or of a file; return the exit status."""
    from ssl_lightning.launch.evaluate import launch_evaluation, with_data_of_run

    return _compose_and_run(launch_evaluation, "evaluate", with_data_of_run(arguments))


def report_main(arguments: Sequence[str]) -> int:
    """Write the table and the page of stored runs; return the exit status."""
    from ssl_lightning.launch.report import launch_report

    # stored without the rest of conf/, where `benchmark` is a group whose files start a sweep
    ConfigStore.instance().store("report", OmegaConf.load(conf_dir() / "report.yaml"))
    return _compose_and_run(launch_report, "report", arguments, stored=True)


def audit_main(arguments: Sequence[str]) -> int:
    """Find the shortcuts that a task's guards prevent; return the exit status."""
    from ssl_lightning.launch.audit import run_audit

    return _compose_and_run(run_audit, "audit", arguments)


def compare_main(arguments: Sequence[str]) -> int:
    """Compare the pretext tasks on one data set; return the exit status."""
    from ssl_lightning.launch.compare import run_compare

    return _compose_and_run(run_compare, "compare", arguments)


def export_main(arguments: Sequence[str]) -> int:
    """Write the backbone of a run for another library; return the exit status."""
    from ssl_lightning.launch.export import run_export

    return _compose_and_run(run_export, "export", arguments)


def _compose_and_run(
    task: Callable[[Any], Any], name: str, arguments: Sequence[str], *, stored: bool = False
) -> int:
    """Run Hydra's command line; return its exit status, after an error in one line.

    Args:
        task: Takes the composed config. Hydra names the job after its module.
        name: Name of the config.
        arguments: Command line.
        stored: Whether the config is in Hydra's ConfigStore, without the folder `conf`.
    """
    if is_help(arguments):
        print(help_text(name))
        return 0
    if wrong := unknown_flag(arguments):
        lists = f"`{command_line(name)} --help` lists the keys"
        return print_error(RunError(f"error: {wrong} is not an option; settings are KEY=VALUE, and {lists}"))
    if not stored:  # Hydra takes groups of a plugin for its own; the report looks into their folders itself
        use_plugins()
    sys.argv[1:] = quote_paths(arguments)  # Hydra reads them there
    path = None if stored else str(conf_dir())
    wanted = os.environ.get(FULL_ERROR)
    os.environ[FULL_ERROR] = "1"
    with failed_jobs_named() as jobs:
        try:
            watched = jobs.watch(_in_one_line(task, wanted))
            hydra.main(version_base="1.3", config_path=path, config_name=name)(watched)()
        except (*CONFIG_ERRORS, OSError) as error:
            if wanted == "1":
                raise
            return print_error(_shortened(error, name))
    return 0


def unknown_flag(arguments: Sequence[str]) -> str | None:
    """Return the first argument that has the form of an option and is none of Hydra's.

    >>> unknown_flag(["task=jigsaw", "--epochs", "3"]), unknown_flag(["-m", "--cfg", "job"])
    ('--epochs', None)
    """
    _, unknown = get_args_parser().parse_known_args(list(arguments))
    return next((each for each in unknown if each.startswith("-")), None)


def _shortened(error: Exception, name: str) -> RunError:
    """Return an error of Hydra, or of a job of a sweep, without Hydra's search path."""
    if isinstance(error, RunError):
        return error
    text = explained(error, name)
    if isinstance(error, OSError) and not isinstance(error, HydraException):  # Hydra makes the run folder
        text += "; output_dir= names the parent of the run folders"
    return RunError(f"error: {text}")


def _in_one_line(task: Callable[[Any], Any], wanted: str | None) -> Callable[[Any], Any]:
    """Make a single job print its expected error and exit; Hydra would print its overrides before it.

    Args:
        task: Takes the composed config.
        wanted: The user's own value of Hydra's variable, which the processes of the task inherit.
    """

    @functools.wraps(task)
    def run(cfg: DictConfig) -> Any:
        os.environ.pop(FULL_ERROR)
        if wanted is not None:
            os.environ[FULL_ERROR] = wanted
        try:
            return task(cfg)
        except RunError as error:
            if HydraConfig.get().mode is RunMode.MULTIRUN:
                raise  # the other jobs of the sweep still run
            raise SystemExit(print_error(error)) from None
        finally:
            os.environ[FULL_ERROR] = "1"

    return run
