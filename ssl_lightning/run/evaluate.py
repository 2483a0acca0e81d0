"""Probes on the trunk of a run that exists, whose figures are added to its results.json."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from ssl_lightning.artifacts.provenance import git_revision
from ssl_lightning.artifacts.results import Evaluation, add_records, earlier_results, write_results
from ssl_lightning.artifacts.run_folder import CHECKPOINTS, RESULTS
from ssl_lightning.config.trust import given_overrides
from ssl_lightning.engine.trainer import join_processes
from ssl_lightning.report.summary import print_probes
from ssl_lightning.run.execute import Run, command


def evaluate(cfg: DictConfig, folder: Path) -> None:
    """Probe the trunk of a run that exists, and add the figures to its `results.json`.

    Raises:
        ValueError: The checkpoint is absent, torn, or of another network; nothing is written then.
    """
    join_processes()
    results = earlier_results(folder)
    if results is None:
        raise ValueError(f"{folder} has no {RESULTS} to add to; finish the run first: resume={folder}")
    name = str(cfg.checkpoint)
    path = folder / CHECKPOINTS / f"{name}.ckpt" if name in ("last", "best") else Path(name)
    job = Run(cfg, folder, resume=False, checkpoint=path)
    if not job.probes:
        raise ValueError("there is nothing to evaluate: no probe was chosen, or the data have no labels")
    job.print_header()
    job.probe(trained=job.task.needs_training or bool(job.loaded))
    if not job.trainer.is_global_zero:
        return
    stamp = Evaluation(
        data=cfg.choices.data,
        checkpoint=name,
        git=git_revision(),
        command=command("evaluate.py", given_overrides(cfg)),
    )
    same = add_records(results, job.records, stamp)
    write_results(folder / RESULTS, results)
    print_probes(job.records, job.probe_s)
    if not job.records:
        print(f"what the probes wrote is in {folder}")
        return
    found = f"{same} of {len(job.records)} figures were in {folder / RESULTS}, exactly equal"
    print(found if same == len(job.records) else f"{found}; the rest was added")
