"""Table of special keys: it covers conf/, and the lists derived from it do not change."""

import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from ssl_lightning.config import identity, trust
from ssl_lightning.config.keys import COMPARE_SETS, DATA, KEYS, TOP, TRAINER
from ssl_lightning.config.types import check_special
from ssl_lightning.launch import audit, evaluate, resume
from ssl_lightning.report import build
from ssl_lightning.run.parts import OURS
from ssl_lightning.run.probe import HARDWARE
from ssl_lightning.run.writer import PLACES

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
ENTRIES = [CONF / "train.yaml", CONF / "evaluate.yaml"]
SET_BY_US = {"overrides", "benchmark"}  # set by the launcher and by conf/benchmark


def keys_of(*paths: Path) -> set[str]:
    return {str(key) for path in paths for key in OmegaConf.load(path)} - {"defaults", "hydra"}


def groups_of(path: Path) -> set[str]:
    """Return the groups that a file of conf/ chooses from."""
    chosen = [each for each in OmegaConf.load(path).defaults if not isinstance(each, str)]
    return {str(key) for each in chosen for key in each} - {"experiment", "override hydra/job_logging"}


def test_a_key_has_one_row() -> None:
    names = [key.name for key in KEYS]
    assert len(names) == len(set(names))


def test_every_key_of_the_entries_has_a_row_and_every_row_a_key() -> None:
    groups = set().union(*map(groups_of, ENTRIES))
    rows = {key.name for key in KEYS if "." not in key.name}
    assert rows == keys_of(*ENTRIES) | groups | SET_BY_US
    assert rows - TOP.keys() == {"budget", "common_backbone"}


def test_every_key_of_the_trainers_has_a_row() -> None:
    assert keys_of(CONF / "trainer/auto.yaml") == TRAINER.keys()
    assert keys_of(*(CONF / "trainer").glob("*.yaml")) == TRAINER.keys()


@pytest.mark.parametrize("group", ["data", "task"])
def test_rows_of_groups_name_existing_keys(group: str) -> None:
    rows = {key.name.partition(".")[2] for key in KEYS if key.name.startswith(f"{group}.")}
    assert rows <= keys_of(*(CONF / group).glob("*.yaml"))


def test_keys_outside_the_digests() -> None:
    assert set(identity.NOT_SCIENCE) == {
        "name", "run_dir", "folder", "output_dir", "logger", "callbacks", "objective", "summary",
        "diverged", "deterministic", "compile", "cuda_graphs", "skip_finished", "go_on", "benchmark",
        "overrides", "trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy",
        "trainer.launcher", "trainer.log_every_n_steps", "data.root", "data.num_workers",
        "data.device_resident",
    }  # fmt: skip
    in_parts = {name.partition(".")[0] for name in identity.NOT_SCIENCE if "." in name}
    assert in_parts == set(identity.SPLIT)


def test_keys_that_may_change_on_resume() -> None:
    page = (CONF.parent / "docs/resume.md").read_text()
    assert f"allowed are {', '.join(resume.MAY_CHANGE)}." in " ".join(page.split())
    assert resume.MAY_CHANGE == (
        "trainer.max_epochs", "trainer.max_steps", "trainer.devices", "trainer.accelerator",
        "trainer.num_nodes", "trainer.strategy", "trainer.launcher", "trainer.log_every_n_steps", "data.root",
        "data.num_workers", "data.device_resident", "logger", "callbacks", "objective", "summary", "diverged",
        "compile", "cuda_graphs",
    )  # fmt: skip
    assert set(resume.MAY_CHANGE) - set(identity.NOT_SCIENCE) == {"trainer.max_epochs", "trainer.max_steps"}


def test_paths_that_an_untrusted_config_may_name() -> None:
    assert set(trust.CACHES) == {"data.root", "task.cache_dir"}
    read = {"data", "init_from", "weights", "checkpoint", "prefix_map", "overrides"}
    read |= {"probe.embedding.folder", "task.vgg_weights"}
    unused = {"output_dir", "folder", "name", "resume", "run"}
    beyond = set(trust.NOT_WRITTEN) - read - unused - set(trust.CACHES)
    assert {name.partition(".")[0] for name in beyond} <= {"data"}  # only read, as a group
    assert read | unused <= set(trust.NOT_WRITTEN)


def test_keys_that_evaluate_takes_and_refuses() -> None:
    assert set(evaluate.TAKEN) == {"probe", "data", "trainer", "encoding", "deterministic"}
    assert set(evaluate.REFUSED) == {
        "task", "backbone", "optimizer", "scheduler", "seed", "weights", "prefix_map", "name", "init_from",
        "skip_finished",
    }  # fmt: skip


def test_keys_that_an_audit_sets_and_refuses() -> None:
    assert set(audit.SET) == {"name", "output_dir", "probe_untrained"}
    assert audit.INSTEAD == {
        "seed": "audit.seeds=[...]",
        "folder": "name=",
        "run_dir": "name=",
        "resume": "the same name=",
    }


def test_keys_that_a_comparison_sets() -> None:
    assert set(COMPARE_SETS) == {
        "task", "optimizer", "scheduler", "probe", "budget", "benchmark", "experiment", "seed", "folder",
        "run_dir", "resume", "probe_untrained", "data.batch_size", "trainer.max_epochs", "trainer.max_steps",
    }  # fmt: skip


def test_keys_that_a_label_of_a_series_hides() -> None:
    assert build.NAMED == ("task", "data", "backbone")
    assert set(build.HIDDEN) == {
        "seed", "name", "output_dir", "folder", "run_dir", "skip_finished", "resume", "budget",
        "summary",
    }  # fmt: skip


def test_keys_that_the_trainers_of_a_run_get() -> None:
    assert set(HARDWARE) == {"accelerator", "devices", "num_nodes", "strategy", "precision"}
    assert set(OURS) == {"sync_batchnorm", "launcher"}
    assert PLACES == ("root", "dir", "pretrain_dir", "train_dir", "test_dir")
    assert set(PLACES) <= DATA.keys()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"seed": "x"}, "seed is 'x'; allowed is a whole number"),
        ({"trainer": 3}, "trainer is 3; allowed is a mapping"),
        ({"seeds": 1}, "seeds is not a key of the config; did you mean seed"),
        ({"trainer": {"num_nodes": 0}}, "trainer.num_nodes is 0; allowed is a whole number, 1 or more"),
        ({"trainer": {"num_nodes": "two"}}, "num_nodes is 'two'; allowed is a whole number, 1 or more"),
        ({"trainer": {"val_check_interval": 1.5}}, "is 1.5; allowed is a number of batches above 0"),
        ({"trainer": {"limit_val_batches": -1}}, "is -1; allowed is 0, a number of batches"),
    ],
)
def test_special_keys_are_checked_by_their_rows(config: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_special(config)


def test_allowed_values_are_accepted() -> None:
    lengths = {"max_epochs": -1, "max_steps": 1, "limit_train_batches": 0.5, "limit_val_batches": 0}
    others = {"devices": "auto", "val_check_interval": 7, "gradient_clip_val": None, "new_to_lightning": 3}
    check_special({"name": 42, "cuda_graphs": False, "diverged": None, "trainer": lengths | others})


@pytest.mark.parametrize("wrong", ["seed=x", "trainer.max_epochs=soon", "trainer.devices=0"])
def test_a_wrong_special_key_is_refused_before_anything_is_written(wrong: str, tmp_path: Path) -> None:
    given = ["data=fake", "trainer=cpu", f"output_dir={tmp_path}", "name=x", wrong]
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(ROOT / "train.py"), *given],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert f"error: {wrong.partition('=')[0]} is " in done.stderr
    assert " torch\n" not in done.stderr  # and torch was not imported
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
