"""Attacks by an untrusted run folder, through its config or its links, all of which fail.

`train.py resume=`, `evaluate.py run=` and a worker started by hand all go through `enter`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from ssl_lightning.config.paths import conf_dir
from ssl_lightning.config.trust import check_links, check_trusted, given_overrides, load_config
from ssl_lightning.core.cache import cache_root
from ssl_lightning.core.errors import RunError
from ssl_lightning.launch.evaluate import TAKEN, evaluation_config
from ssl_lightning.launch.resume import moved, read_config, resumed_config
from ssl_lightning.networks.timm_backbone import create_timm
from ssl_lightning.run.writer import command
from tests.refusals._run import make_run

ROOT = Path(__file__).parents[2]
HOME = "/home/friend/outputs/rotation/fake/convnet/x"  # where the folder was
CONFIG: dict[str, Any] = {
    "data": {"_target_": "ssl_lightning.data.fake.Fake", "batch_size": 8, "root": None},
    "backbone": {"_target_": "ssl_lightning.networks.convnet.ConvNet", "widths": [4, 4, 4]},
    "optimizer": {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1},
    "scheduler": {"_target_": "ssl_lightning.engine.optim.one_cycle", "_partial_": True},
    "task": {"_target_": "ssl_lightning.tasks.rotation.Rotation", "copies": 4},
    "trainer": {"accelerator": "cpu", "devices": 1},
    "probe": {"knn": {"_target_": "ssl_lightning.probes.knn.KNNProbe"}},
    "logger": {"csv": {"_target_": "ssl_lightning.callbacks.csv_logger.CSVLogger", "save_dir": HOME}},
    "callbacks": {
        "checkpoint": {
            "_target_": "ssl_lightning.callbacks.checkpoint.Checkpoint", "dirpath": f"{HOME}/checkpoints",
        },
        "panel": {"_target_": "ssl_lightning.callbacks.panel.PanelPicture", "folder": HOME},
    },
    "encoding": {"_target_": "ssl_lightning.features.prepare.Preparation"},
    "seed": 0, "name": "x", "output_dir": "outputs", "folder": "rotation/fake/convnet/x", "run_dir": HOME,
    "choices": {"task": "rotation", "data": "fake", "backbone": "convnet"}, "init_from": None,
    "overrides": ["data=fake", "name=${oc.env:SECRET}"],
}  # fmt: skip
Spoil = Callable[[Path], Any]


def enter(folder: Path) -> None:
    """Check a run folder like every entry point."""
    check_links(folder)
    cfg = load_config(folder / "config.yaml")
    config: Any = moved(OmegaConf.to_container(cfg), str(cfg.run_dir), str(folder))
    check_trusted(config, folder, folder / "config.yaml")


def says(place: str, value: Any) -> Spoil:
    """Set a dotted key of the config."""

    def spoil(folder: Path) -> None:
        path = folder / "config.yaml"
        config = yaml.safe_load(path.read_text())
        parent: Any = config
        *groups, key = place.split("/")
        for group in groups:
            parent = parent.setdefault(group, {})
        parent[key] = value
        path.write_text(yaml.safe_dump(config))

    return spoil


def runs(target: Any, group: str = "data") -> Spoil:
    return says(f"{group}/_target_", target)


def text(content: bytes | str) -> Spoil:
    data = content if isinstance(content, bytes) else content.encode()
    return lambda folder: (folder / "config.yaml").write_bytes(data)


def more(content: str) -> Spoil:
    """Add lines to the config."""

    def spoil(folder: Path) -> None:
        with open(folder / "config.yaml", "a") as file:
            file.write(content)

    return spoil


def link(name: str, to: str) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(to)

    return spoil


def pipe(name: str) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return spoil


BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)
NOT_OURS = "which is not in conf/ for that group"
ACTED_ON = "which Hydra would act on; allowed are _target_ and _partial_"
RESOLVED = "a stored config holds resolved values only"
WRITES = "would write to .* on the command line"
ATTACKS: dict[str, tuple[Spoil, str]] = {
    # code
    "a command": (runs("os.system"), f"would run 'os.system' .data._target_., {NOT_OURS}"),
    "a function of Python": (runs("builtins.eval"), NOT_OURS),
    "torch.hub": (runs("torch.hub.load", "task"), NOT_OURS),
    "torch.load": (runs("torch.load", "backbone"), NOT_OURS),
    "an import of a project module": (runs("ssl_lightning.launch.ranks.subprocess.run", "task"), NOT_OURS),
    "a project function that writes": (runs("ssl_lightning.core.atomic_files.write_file"), NOT_OURS),
    "a project class of another group": (runs("ssl_lightning.callbacks.checkpoint.Checkpoint"), NOT_OURS),
    "an optimizer for a task": (runs("torch.optim.SGD", "task"), NOT_OURS),
    "hydra's get_method": (runs("hydra.utils.get_method", "scheduler"), NOT_OURS),
    "hydra's get_class": (runs("hydra.utils.get_class", "optimizer"), NOT_OURS),
    "hydra's get_object": (runs("hydra.utils.get_object"), NOT_OURS),
    "hydra's instantiate": (runs("hydra.utils.instantiate"), NOT_OURS),
    "a target that is a list": (runs(["os.system"]), NOT_OURS),
    "a target that is an object": (runs({"_target_": "os.system"}), NOT_OURS),
    "a target within an argument": (runs("os.system", "data/mean"), NOT_OURS),
    "a target within a list": (says("optimizer/betas", [[{"_target_": "os.system"}]]), NOT_OURS),
    "a target in a new group": (runs("os.system", "extra/x"), NOT_OURS),
    "a target at the top": (says("_target_", "os.system"), NOT_OURS),
    "a target for the trainer": (runs("pathlib.Path.touch", "trainer"), NOT_OURS),
    "arguments by position": (says("data/_args_", ["x"]), ACTED_ON),
    "another conversion": (says("data/_convert_", "all"), ACTED_ON),
    "no recursion": (says("data/_recursive_", False), ACTED_ON),
    # YAML
    "a class of YAML": (more("x: !!python/object/apply:os.system [touch x]\n"), "cannot be read as a config"),
    "a bomb of aliases": (more(BOMB), "it has YAML aliases"),
    "a merge of an alias": (more("x: &x {a: 1}\ny: {<<: *x}\n"), "it has YAML aliases"),
    "lists nested deeply": (more(f"x: {'[' * 5000 + ']' * 5000}\n"), "it is nested more than 32 deep"),
    "a key twice": (more("seed: 1\n"), "cannot be read as a config: .*duplicate key"),
    "16 MB": (text(b"#" * (1 << 24)), "it has 16,777,216 bytes; allowed are at most 1,048,576"),
    "not UTF-8": (text(b"task: \xff\n"), "cannot be read as a config: .*utf-8"),
    "a list": (text("[]"), "is not the config of a run"),
    "no bytes": (text(""), "is not the config of a run"),
    "a task in words": (says("task", "rotation"), "is not the config of a run"),
    "a number of a folder": (says("run_dir", 3), "is not the config of a run"),
    "overrides in words": (says("overrides", "task=rotation"), "overrides is not a list of texts"),
    "a pipe for the config": (pipe("config.yaml"), "plain file"),
    "a link in a circle": (link("config.yaml", "config.yaml"), "a link that leads out|Too many levels"),
    # interpolations
    "the environment": (says("name", "${oc.env:HOME}"), f"name is '.*HOME.*'; {RESOLVED}"),
    "the environment in a list": (says("data/mean", ["${oc.env:HOME}"]), RESOLVED),
    "the environment in a key": (says("choices/${oc.env:HOME}", "x"), RESOLVED),
    "the environment within a text": (says("logger/csv/save_dir", "/x/${oc.env:HOME}"), RESOLVED),
    "a decoded text": (says("data/mean", "${oc.decode:'[1,2]'}"), RESOLVED),
    "a created object": (says("data/mean", "${oc.create:{_target_:os.system}}"), RESOLVED),
    "a resolver of someone": (says("seed", "${evil:1}"), RESOLVED),
    "another value": (says("seed", "${data.batch_size}"), RESOLVED),
    "an escaped reference": (says("name", "\\${oc.env:HOME}"), RESOLVED),
    "a value that is missing": (says("data/batch_size", "???"), RESOLVED),
    # places that are written to
    "checkpoints elsewhere": (says("callbacks/checkpoint/dirpath", "/etc/cron.d"), WRITES),
    "checkpoints up the tree": (says("callbacks/checkpoint/dirpath", f"{HOME}/../../x"), WRITES),
    "checkpoints at home": (says("callbacks/checkpoint/dirpath", "~/.ssh"), WRITES),
    "checkpoints where one stands": (says("callbacks/checkpoint/dirpath", "here"), WRITES),
    "panels elsewhere": (says("callbacks/panel/folder", "/srv/www"), WRITES),
    "a log elsewhere": (says("logger/csv/save_dir", "/var/log"), WRITES),
    "a log of a name that leads up": (says("logger/csv/version", "../../.."), WRITES),
    "a root of Lightning": (says("trainer/default_root_dir", "/root"), WRITES),
    "a folder that was the root": (says("run_dir", "/"), WRITES),
    "a log in an object in a list": (says("callbacks/panel/more", [{"save_dir": "/var/log"}]), WRITES),
    "published weights": (says("backbone/pretrained", True), "would fetch published weights"),
    # links in the folder
    "checkpoints behind a link": (link("checkpoints", "/tmp"), "checkpoints is a link that leads out"),
    "a log behind a link": (link("metrics.csv", "/etc/passwd"), "metrics.csv is a link that leads out"),
    "a lock behind a link": (link(".lock", "/etc/passwd"), ".lock is a link that leads out"),
    "a dangling link": (link("results.json", "/nowhere/x"), "results.json is a link that leads"),
    "a link deep in the folder": (link("tensorboard/events", "/etc/passwd"), "is a link that leads out"),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "run"
    place.mkdir()
    (place / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    return place


def test_a_harmless_folder_is_accepted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Show that the table refuses only the change of each case; loggers create links inside the folder."""
    (folder / "log-1").touch()
    (folder / "log").symlink_to("log-1")
    enter(folder)
    # and texts of the command line that look like interpolations stay unresolved
    monkeypatch.setenv("SECRET", "token-of-the-reader")
    given = given_overrides(load_config(folder / "config.yaml"))
    assert command("train", given) == "python train.py data=fake"  # a name does not compute
    assert given[1] == "name=${oc.env:SECRET}"


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_refused(name: str, folder: Path, tmp_path: Path) -> None:
    spoil, answer = ATTACKS[name]
    spoil(folder)
    with pytest.raises(ValueError, match=answer) as caught:
        enter(folder)
    assert str(folder) in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert not list(tmp_path.rglob("owned"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_refused_by_both_commands(name: str, folder: Path) -> None:
    spoil, answer = ATTACKS[name]
    spoil(folder)
    cfg = OmegaConf.create({group: {} for group in TAKEN})
    cfg.update(checkpoint="last", choices={"data": "fake"})
    with pytest.raises(RunError, match=answer):
        resumed_config(folder, [], conf_dir())
    if answer == WRITES and name != "a root of Lightning":
        taken = evaluation_config(folder, cfg, [f"run={folder}"])  # its log and output folders are replaced
        assert taken.callbacks == taken.logger == {}
        return
    with pytest.raises(RunError, match=answer):
        evaluation_config(folder, cfg, [f"run={folder}"])


def test_keys_from_the_command_line_are_allowed(folder: Path) -> None:
    config = CONFIG | {"run_dir": str(folder)}
    for place, value in (("logger.csv.save_dir", "/scratch/logs"), ("backbone.pretrained", True)):
        cfg = OmegaConf.create(moved(config, HOME, str(folder)))
        OmegaConf.update(cfg, place, value)
        changed: Any = OmegaConf.to_container(cfg)
        with pytest.raises(ValueError, match=place):
            check_trusted(changed, folder, folder / "config.yaml")
        check_trusted(changed, folder, folder / "config.yaml", [place])


def test_a_cache_of_another_machine_is_replaced_by_the_users(folder: Path, tmp_path: Path) -> None:
    says("data/root", str(tmp_path / "absent"))(folder)
    says("task/cache_dir", str(tmp_path))(folder)
    cfg = read_config(folder)
    assert cfg.data.root == str(cache_root())
    assert cfg.task.cache_dir == str(tmp_path)


@pytest.mark.parametrize(
    "model_name",
    [
        "hf-hub:evil/x",
        "hf_hub:evil/x",
        "local-dir:/tmp/x",
        "timm/resnet18",
        "https://x/resnet18",
        "resnet18.hf-hub:e/x",
        "../x",
    ],
)
def test_timm_builds_only_its_own_models(model_name: str) -> None:
    with pytest.raises(ValueError, match="which timm does not have"):
        create_timm(model_name)


@pytest.mark.parametrize(
    "option", ["checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"]
)
def test_timm_is_given_no_files_and_no_addresses(option: str) -> None:
    with pytest.raises(ValueError, match=f"backbone.{option} is .*; files and addresses are not allowed"):
        create_timm("resnet18", **{option: {"file": "/tmp/evil.pth"}})


# --- in separate processes ---


def run_command(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SSL_LIGHTNING")}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, cwd=cwd, timeout=240,
        env=clean | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment,
    )  # fmt: skip


@pytest.mark.slow
def test_a_worker_started_by_hand_runs_no_code_of_an_untrusted_folder(folder: Path) -> None:
    says("data", {"_target_": "pathlib.Path.touch", "self": str(folder / "owned")})(folder)
    shutil.copy(folder / "config.yaml", folder / "evaluation.yaml")
    for mode in ([], ["evaluate"]):
        done = run_command("-m", "ssl_lightning.run", str(folder), *mode, cwd=folder.parent)
        assert done.returncode != 0
        assert "would run 'pathlib.Path.touch' (data._target_)" in done.stderr
        assert "Traceback" not in done.stderr
    assert not (folder / "owned").exists()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("made") / "run")


@pytest.mark.slow
def test_an_untrusted_run_writes_nothing_of_the_environment(made: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(made, tmp_path / "run"))
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["overrides"] += ["+benchmark.x=${oc.env:SECRET}", "name=${oc.env:SECRET}"]
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    done = run_command(
        str(ROOT / "train.py"), f"resume={copy}", "trainer.max_epochs=2", cwd=tmp_path, SECRET="token-of-mine"
    )
    assert done.returncode == 0, done.stderr
    done = run_command(str(ROOT / "evaluate.py"), f"run={copy}", cwd=tmp_path, SECRET="token-of-mine")
    assert done.returncode == 0, done.stderr
    assert "${oc.env:SECRET}" in (copy / "results.json").read_text()
    for path in copy.rglob("*"):
        assert not path.is_file() or b"token-of-mine" not in path.read_bytes()


@pytest.mark.slow
def test_an_untrusted_run_writes_only_into_its_folder(made: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(made, tmp_path / "there" / "run"))
    stand = tmp_path / "stand"
    stand.mkdir()
    done = run_command(str(ROOT / "train.py"), f"resume={copy}", "trainer.max_epochs=2", cwd=stand)
    assert done.returncode == 0, done.stderr
    assert not list(stand.iterdir())
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["run"]


def test_an_error_escapes_control_characters() -> None:
    error = RunError("error: unexpected: \x1b]0;owned\x07\x1b[2J, \u202egnp.exe\nallowed are a, b")
    assert str(error) == ("error: unexpected: \\x1b]0;owned\\x07\\x1b[2J, \\u202egnp.exe\nallowed are a, b")
