"""Evaluate an existing run: run probes and add their results to results.json."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig

from ssl_lightning.artifacts.records import Evaluation
from ssl_lightning.artifacts.results import add_records, earlier_results, write_results
from ssl_lightning.artifacts.run_folder import CHECKPOINTS, RESULTS
from ssl_lightning.config.trust import given_overrides
from ssl_lightning.core.progress import watched
from ssl_lightning.engine.trainer import join_processes
from ssl_lightning.report.summary import print_probes, print_times
from ssl_lightning.run.parts import build_parts
from ssl_lightning.run.probe import probe_task
from ssl_lightning.run.writer import RunWriter, command


def evaluate(cfg: DictConfig, folder: Path, accept: Callable[[], None] = lambda: None) -> None:
    """Probe the backbone of an existing run, and add the results to its `results.json`.

    Args:
        cfg: Resolved.
        folder: The run folder.
        accept: Called once every check has passed, before any work.

    Raises:
        ValueError: The checkpoint is absent, torn, or of another network; no file is written.
    """
    began = time.perf_counter()
    join_processes()
    results = earlier_results(folder)
    if results is None:
        raise ValueError(f"{folder} has no {RESULTS} to add to; finish the run first: resume={folder}")
    name = str(cfg.checkpoint)
    path = folder / CHECKPOINTS / f"{name}.ckpt" if name in ("last", "best") else Path(name)
    with watched("load the data and build the networks"):
        parts = build_parts(cfg, folder, resume=False, checkpoint=path)
    if not parts.probes:
        raise ValueError("there is nothing to evaluate: no probe was chosen, or the data have no labels")
    accept()
    writer = RunWriter(parts, began)
    writer.list_near_duplicates()
    writer.print_header(trains=False)
    with writer.phase("probes"):
        probed = probe_task(parts, parts.task)
    writer.add(probed, trained=parts.task.needs_training or bool(parts.loaded))
    if not parts.trainer.is_global_zero:
        return
    stamp = Evaluation(
        data=cfg.choices.data,
        checkpoint=name,
        git=writer.git,
        command=command("evaluate", given_overrides(cfg)),
    )
    writer.save_classifiers(probed)
    same = add_records(results, writer.records, stamp)
    write_results(folder / RESULTS, results)
    print_probes(writer.records, writer.probe_s)
    print_times(writer.seconds)
    total = len(writer.records)
    if not total:
        print(f"the probes wrote their files to {folder}")
    elif same == total:
        print(f"no new results: {folder / RESULTS} already has all {total}, exactly equal")
    else:
        print(f"{total - same} new results added to {folder / RESULTS}; {same} already there, exactly equal")
