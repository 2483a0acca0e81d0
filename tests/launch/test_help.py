"""Help of the commands: every group and key of their configs, and no torch."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from ssl_lightning.core.entry import ENTRY
from ssl_lightning.launch.commands import train_main
from ssl_lightning.launch.help import help_text
from tests._composed import CONF

ROOT = Path(__file__).parents[2]
COMMANDS = ["train", "evaluate", "compare", "report", "audit", "export"]


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENTRY, "ssl-lightning {}")


@pytest.mark.parametrize("name", COMMANDS)
def test_it_is_written_for_the_form_that_the_user_calls(name: str) -> None:
    text = help_text(name)
    assert text.startswith(f"usage: ssl-lightning {name} KEY=VALUE")
    assert "python " not in text
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("name", ["train", "evaluate", "compare", "audit"])
def test_it_has_every_option_of_every_group(name: str) -> None:
    groups = help_text(name).partition("\nGroups")[2].partition("\n\n")[0]
    listed = re.split(r"\n  (?=\w)", groups)[1:]
    found = {row.split()[0]: set(re.findall(r"\w+", row)) - {row.split()[0], "null"} for row in listed}
    expected = {
        path.name: {file.stem for file in path.glob("*.yaml")} for path in CONF.iterdir() if path.is_dir()
    }
    assert {"data", "backbone", "trainer"} <= found.keys() <= expected.keys()
    assert ({"task", "probe", "experiment"} & found.keys() == set()) == (name == "compare")
    assert found == {group: expected[group] for group in found}


def test_a_group_without_a_default_begins_with_null() -> None:
    rows = dict(re.findall(r"^  (\w+) +(\S+),", help_text("train"), flags=re.MULTILINE))
    defaults = OmegaConf.load(CONF / "train.yaml").defaults
    chosen = {key: value for each in defaults if isinstance(each, DictConfig) for key, value in each.items()}
    assert rows["experiment"] == "null" == str(chosen["experiment"] or "null")
    assert rows["budget"] == chosen["budget"]


@pytest.mark.parametrize("name", COMMANDS)
def test_only_a_help_with_such_keys_explains_them(name: str) -> None:
    text = help_text(name)
    assert ("??? must be given" in text) == ("=???" in text)


@pytest.mark.parametrize("name", COMMANDS)
def test_its_keys_exist_with_these_defaults(name: str) -> None:
    config = OmegaConf.load(CONF / f"{name}.yaml")
    lines = help_text(name).partition("\nKeys")[2].splitlines()
    rows = dict(match.groups() for line in lines if (match := re.match(r"  ([\w.]+)=(\S*)", line)))
    assert rows
    for key, shown in rows.items():
        value = OmegaConf.to_container(OmegaConf.from_dotlist([f"key={shown}"]))["key"]
        stored = OmegaConf.select(config, key) if "${" not in str(config._get_node(key)) else None
        assert value in (stored, "") or (shown, stored) == ("???", None), key


@pytest.mark.parametrize("arguments", [["--help"], ["task=jigsaw", "-h"], ["resume=nowhere", "--help"]])
def test_a_command_prints_it(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert train_main(arguments) == 0
    assert capsys.readouterr().out == help_text("train") + "\n"


def test_it_needs_no_torch() -> None:
    code = "import sys; from ssl_lightning.launch.help import help_text; help_text('compare'); "
    code += "assert 'torch' not in sys.modules"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
