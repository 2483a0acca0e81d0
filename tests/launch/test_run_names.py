"""Tests of the names of run folders: a refused run frees its name, and names from the time are unique."""

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml
from filelock import FileLock
from hydra.core.utils import setup_globals
from omegaconf import DictConfig, OmegaConf

from ssl_lightning.artifacts.run_folder import CONFIG, HYDRA, LOCK, NEXT_CONFIG, discard_refused
from ssl_lightning.core.errors import RunError
from ssl_lightning.launch.train import TakenError, holding, locked_new

ROOT = Path(__file__).parents[2]
QUICK = ["data=fake", "trainer=debug", "task=random", "probe=[]", "logger=[]", "callbacks=[]"]
DAY = "name=${now:%Y}"  # every run of this year would have this name


def config(name: str) -> DictConfig:
    return OmegaConf.create({"name": name, "run_dir": "unset", "save_dir": "${run_dir}/logs"})


def by_time() -> DictConfig:
    setup_globals()  # Hydra's resolver `now`
    return config("${now:%Y}")


def test_names_from_the_time_are_unique(tmp_path: Path) -> None:
    """Hold the folders of three runs that start at once, in as many threads."""
    cfg = by_time()
    found: list[tuple[Path, DictConfig]] = []
    barrier = threading.Barrier(3)

    def start() -> None:
        barrier.wait()
        with locked_new(tmp_path / cfg.name, cfg, may_exist=False) as place:
            found.append(place)
            barrier.wait()

    threads = [threading.Thread(target=start) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    names = {cfg.name + suffix for suffix in ("", "-2", "-3")}
    assert {folder.name: renamed.name for folder, renamed in found} == {name: name for name in names}
    for folder, renamed in found:
        assert renamed is cfg or renamed.save_dir == f"{folder}/logs"
    assert not list(tmp_path.iterdir())  # nothing ran, so nothing stays


def test_a_finished_run_keeps_its_name_from_the_time(tmp_path: Path) -> None:
    cfg = by_time()
    first = tmp_path / f"{cfg.name}_0"  # job 0 of a sweep
    first.mkdir()
    (first / CONFIG).touch()
    with locked_new(first, cfg, may_exist=False) as (folder, renamed):
        assert (folder.name, renamed.name) == (f"{cfg.name}_0-2", f"{cfg.name}-2")
    with locked_new(first, cfg, may_exist=True) as (folder, _):
        assert folder == first  # SLURM starts the job again


def test_a_given_name_is_taken_by_one_run(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    with locked_new(folder, config("x"), may_exist=False):
        with pytest.raises(TakenError, match="another process is running in"):
            locked_new(folder, config("x"), may_exist=True).__enter__()
        (folder / CONFIG).touch()
    with pytest.raises(TakenError, match=f"already holds a run; resume it with resume={folder}, or give"):
        locked_new(folder, config("x"), may_exist=False).__enter__()
    assert (folder / CONFIG).exists()


RESULT = (Path(__file__).parents[1] / "fixtures/run_8a5cf39/results.json").read_text()


@pytest.mark.parametrize(
    ("files", "disposable"),
    [
        ({}, True),
        ({"results.json": RESULT.replace('"finished"', '"failed"')}, True),
        ({"results.json": RESULT}, False),
        ({"results.json": RESULT[:99]}, False),
        ({"checkpoints/last.ckpt": ""}, False),
    ],
)
def test_a_folder_of_a_crash_before_the_first_checkpoint_may_be_deleted(
    files: dict[str, str], disposable: bool, tmp_path: Path
) -> None:
    for name, content in {CONFIG: "", **files}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    ending = ", or delete the folder, which holds no checkpoint" if disposable else ""
    with pytest.raises(TakenError, match=f"or give another name={ending}$"):
        locked_new(tmp_path, config("x"), may_exist=False).__enter__()


def test_only_the_traces_of_a_refused_run_are_removed(tmp_path: Path) -> None:
    def fill(folder: Path, *names: str) -> Path:
        (folder / HYDRA).mkdir(parents=True)
        for name in (LOCK, NEXT_CONFIG, *names):
            (folder / name).touch()
        discard_refused(folder)
        return folder

    assert not fill(tmp_path / "refused").exists()
    assert [path.name for path in fill(tmp_path / "notes", "notes.txt").iterdir()] == ["notes.txt"]
    kept = {path.name for path in fill(tmp_path / "run", CONFIG).iterdir()}
    assert kept == {HYDRA, LOCK, CONFIG}


# --- in separate processes ---


def started(script: str, cwd: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(ROOT / script), *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=cwd, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def command(script: str, outputs: Path, *arguments: str) -> subprocess.Popen[str]:
    return started(script, outputs, f"output_dir={outputs}", *arguments)


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    output, errors = process.communicate(timeout=240)
    return process.returncode, output, errors


@pytest.mark.slow
def test_the_corrected_command_may_use_the_name_of_a_refused_one(tmp_path: Path) -> None:
    code, _, errors = ended(command("train.py", tmp_path, *QUICK, "name=x", "data.batch_size=100000"))
    assert code == 1
    assert errors.startswith("error: data.batch_size is 100000; allowed for fake is 1 to")
    assert len(errors.strip().splitlines()) == 1
    assert not (tmp_path / "random/fake/convnet/x").exists()
    code, output, errors = ended(command("train.py", tmp_path, *QUICK, "name=x", "go_on=true"))
    assert code == 0, errors
    assert f"run folder: {tmp_path}/random/fake/convnet/x" in output
    code, _, errors = ended(command("train.py", tmp_path, *QUICK, "name=x"))
    assert "already holds a run; resume it with resume=" in errors
    advice = errors.partition("resume it with ")[2].partition(",")[0]
    code, _, errors = ended(started("train.py", tmp_path, advice))
    assert code == 0, errors


@pytest.mark.slow
def test_runs_that_start_at_once_get_folders_of_their_own(tmp_path: Path) -> None:
    runs = [ended(each) for each in [command("train.py", tmp_path, *QUICK, DAY) for _ in range(2)]]
    assert [code for code, _, _ in runs] == [0, 0], runs
    folders = sorted((tmp_path / "random/fake/convnet").iterdir())
    assert folders[1].name == f"{folders[0].name}-2"
    for folder in folders:
        stored = yaml.safe_load((folder / CONFIG).read_text())
        assert (stored["name"], stored["run_dir"]) == (folder.name, str(folder))


@pytest.mark.slow
def test_a_refused_job_of_a_sweep_frees_its_folder(tmp_path: Path) -> None:
    sweep = [*QUICK, "name=s", "data.batch_size=8,100000"]
    code, _, errors = ended(command("train.py", tmp_path, *sweep, "-m"))
    assert code == 1
    assert "error: data.batch_size is 100000" in errors
    assert "Traceback" not in errors
    assert "HYDRA_FULL_ERROR" not in errors
    assert [path.name for path in (tmp_path / "random/fake/convnet").iterdir()] == ["s_0"]
    code, output, errors = ended(
        command("train.py", tmp_path, *QUICK, "name=s", "data.batch_size=8,16", "go_on=true", "-m")
    )
    assert code == 0, errors
    assert "s_0 is finished" in output
    assert {path.name for path in (tmp_path / "random/fake/convnet").iterdir()} == {"s_0", "s_1"}


@pytest.mark.slow
def test_an_evaluation_does_not_overwrite_another(tmp_path: Path) -> None:
    code, _, errors = ended(command("train.py", tmp_path, *QUICK, "name=first"))
    assert code == 0, errors
    weights = f"weights={tmp_path}/random/fake/convnet/first"
    options = ["data=fake", "trainer=cpu", "probe=[rankme]", "probe.rankme.images=32", weights]
    code, _, errors = ended(command("evaluate.py", tmp_path, *options, "name=x", "backbone.widths=[4]"))
    assert code == 1
    assert not (tmp_path / "evaluate/fake/convnet/x").exists()
    code, _, errors = ended(command("evaluate.py", tmp_path, *options, "name=x"))
    assert code == 0, errors
    code, _, errors = ended(command("evaluate.py", tmp_path, *options, "name=x"))
    assert code == 1
    assert "already holds a run; add to its results with run=" in errors
    advice = errors.partition("results with ")[2].partition(",")[0]
    code, _, errors = ended(started("evaluate.py", tmp_path, advice))
    assert code == 0, errors
    code, _, errors = ended(command("evaluate.py", tmp_path, *options, "name=m", "seed=0,1", "-m"))
    assert code == 0, errors
    assert {path.name for path in (tmp_path / "evaluate/fake/convnet").iterdir()} == {"x", "m_0", "m_1"}


@pytest.mark.slow
def test_a_refused_audit_frees_its_name(tmp_path: Path) -> None:
    options = ["data=fake", "task=jigsaw", "trainer=debug", "probe=[]", "logger=[]", "callbacks=[]", "name=x"]
    code, _, errors = ended(command("audit.py", tmp_path, *options, "data.batch_size=100000"))
    assert code == 1
    assert "error: data.batch_size is 100000" in errors
    assert not (tmp_path / "audit/jigsaw/fake/convnet/x").exists()


@pytest.mark.slow
def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, _, errors = ended(started("train.py", tmp_path, *QUICK, f"output_dir={tmp_path}/file"))
    assert code == 1
    assert errors.startswith("error: [Errno 20] Not a directory")
    assert "output_dir= names the parent of the run folders" in errors
    assert "Traceback" not in errors


def test_a_run_folder_that_is_read_only_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.yaml").touch()

    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(tmp_path / ".lock"))

    monkeypatch.setattr(FileLock, "acquire", refused)  # root may write to folders without permission
    with (
        pytest.raises(RunError, match=r"cannot be written to \(Read-only file system\); copy the folder"),
        holding(tmp_path),
    ):
        pass
