"""Command line `ssl-lightning`: its commands, their names in texts, and whole runs of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ssl_lightning import __main__ as cli
from ssl_lightning import __version__, load_backbone
from ssl_lightning.core import entry
from ssl_lightning.core.entry import ENTRY, command_line
from ssl_lightning.core.errors import RunError
from ssl_lightning.launch.cluster import find_place
from ssl_lightning.run.writer import command
from tests._plugin import write_plugin

ROOT = Path(__file__).parents[2]
SMALL = [
    "data=fake", "budget=tiny", "trainer=cpu", "probe=[knn]", "callbacks=[checkpoint]",
]  # fmt: skip


def call(*arguments: str, path: Path | None = None, **options: object) -> subprocess.CompletedProcess[str]:
    """Run `python -m ssl_lightning` outside the checkout; return the process."""
    places = os.pathsep.join(map(str, filter(None, [ROOT, path])))
    environment = os.environ | {"PYTHONPATH": places, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "ssl_lightning", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_without_a_command_it_lists_them(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENTRY, "ssl-lightning {}")
    assert cli.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, (*_, about) in cli.COMMANDS.items():
        assert any(line.split()[:2] == ["ssl-lightning", name] and line.endswith(about) for line in lines)


def test_a_wrong_command_gets_one_sentence_and_the_version_is_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENTRY, "ssl-lightning {}")
    assert cli.main(["trian"]) == 2
    assert (
        capsys.readouterr().err == f"error: 'trian' is not a command; allowed are {', '.join(cli.COMMANDS)}\n"
    )
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"ssl-lightning {__version__}\n"


def test_it_starts_without_torch(tmp_path: Path) -> None:
    code = "import sys, ssl_lightning.__main__ as m; m.main([]); m.main(['train', '--cfg', 'job']); "
    code += "assert 'torch' not in sys.modules"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "_target_: ssl_lightning.tasks.rotation.Rotation" in done.stdout


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("ssl-lightning {}", "ssl-lightning train"),
        ("python -m ssl_lightning {}", "python -m ssl_lightning train"),
        (None, "python train.py"),
    ],
)
def test_texts_repeat_commands_in_the_form_that_the_user_typed(
    form: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(ENTRY, raising=False)
    if form:
        monkeypatch.setenv(ENTRY, form)
    assert command_line("train") == expected
    assert command("train", ["name=x", "probe=[linear]"]) == f"{expected} 'probe=[linear]'"
    with pytest.raises(RunError, match=f"start it with `srun {expected} "):
        find_place("slurm", 2, 1, {})
    script = "train.py" if form is None else "-m ssl_lightning train"
    with pytest.raises(RunError, match=rf"start it with `torchrun \.\.\. {script} \.\.\.`"):
        find_place("torchrun", 2, 1, {})


def test_an_installed_package_adds_nothing_to_the_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(ENTRY, raising=False)
    monkeypatch.setenv("PYTHONPATH", "/mine")
    assert entry.child_environment()["PYTHONPATH"] == f"{ROOT}{os.pathsep}/mine"
    monkeypatch.setattr(entry, "REPOSITORY", tmp_path)  # site-packages
    assert entry.child_environment()["PYTHONPATH"] == "/mine"
    assert entry.child_environment()[ENTRY] == "python -m ssl_lightning {}"


def test_an_error_is_one_line(tmp_path: Path) -> None:
    done = call("train", "resume=nowhere", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("error:"), done.stdout) == (1, 1, "")
    done = call("train", "task=jigsaw", "--epochs", "3", cwd=tmp_path)
    told = (
        "error: --epochs is not an option; settings are KEY=VALUE, and `python -m ssl_lightning train --help`"
    )
    assert (done.returncode, done.stderr.startswith(told), done.stdout) == (1, True, "")
    done = call("report", "outputs=nowhere", cwd=tmp_path)
    assert done.returncode == 1
    assert "error: outputs is 'nowhere', which is not a folder" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_plugin_trains_on_two_processes_resumes_evaluates_and_loads(tmp_path: Path) -> None:
    plugin, place = write_plugin(tmp_path / "plugin"), tmp_path / "work"
    place.mkdir()
    folder = place / "outputs/flip/fake/convnet/one"
    for arguments in (
        ["train", "task=flip", "name=one", "trainer.devices=2", *SMALL],
        ["train", f"resume={folder}", "trainer.max_epochs=2"],
        ["evaluate", f"run={folder}", "probe=[knn]", "probe.knn.ks=[3]"],
        ["report"],
    ):
        done = call(*arguments, path=plugin, cwd=place)
        assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((folder / "results.json").read_text())
    assert (results["run"]["epochs"], results["run"]["devices"]) == (2, 2)
    assert results["run"]["command"].startswith("python -m ssl_lightning train task=flip ")
    assert (place / "report/report.html").is_file()
    assert load_backbone(folder).feature_info.channels()  # type: ignore[union-attr, operator]
