"""Tests of the tutorials: stored pages are up to date, cells are read right, and every tutorial runs."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs/tutorials"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))
SCRIPT = ROOT / "docs/_site/tutorials.py"
SMALL = """# ---
# jupyter: header
# ---

# %% [markdown]
# # Title
#
# Text.

# %%
x = 2
print(x * 21)

# %% language="bash"
# printf 'a  \\n%s/b\\n' "$PWD"
# cat <<'END' # a comment
# # kept
# END
"""


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tutorials", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["tutorials"] = module  # for its dataclasses
    spec.loader.exec_module(module)
    return module


tutorials = load()


def test_cells_of_all_kinds() -> None:
    text, code, shell = tutorials.cells(SMALL)
    assert text == tutorials.Cell("markdown", "# Title\n\nText.")
    assert code == tutorials.Cell("python", "x = 2\nprint(x * 21)")
    assert shell.kind == "bash"
    assert shell.source.splitlines()[1:] == ["cat <<'END' # a comment", "# kept", "END"]


def test_a_page_has_what_the_cells_printed(tmp_path: Path) -> None:
    parts = list(tutorials.cells(SMALL))
    outputs = tutorials.run(parts, tmp_path)
    assert [output.printed for output in outputs] == ["", "42", "a\nb\n# kept"]
    page = tutorials.page("small", parts, outputs)
    assert "```{.text .output}\n42\n```\n" in page
    assert tutorials.without_outputs(page) == tutorials.page("small", parts)


def test_a_change_of_the_text_keeps_the_outputs(tmp_path: Path) -> None:
    source = (
        "import matplotlib\nmatplotlib.use('agg')\nfrom matplotlib import pyplot\npyplot.figure()\nprint(1)"
    )
    parts = [*tutorials.cells(SMALL), tutorials.Cell("python", source)]
    outputs = tutorials.run(parts, tmp_path)
    (tmp_path / "small-1.png").write_bytes(outputs[-1].pictures[0])
    page = tutorials.page("small", parts, outputs)
    changed = [tutorials.Cell("markdown", "# New text"), *parts[1:]]
    assert tutorials.stored_outputs(changed, page, tmp_path) == outputs
    with pytest.raises(ValueError, match="the code differs"):
        tutorials.stored_outputs([*parts[:-1], tutorials.Cell("python", "print(2)")], page, tmp_path)


def test_figures_become_pictures(tmp_path: Path) -> None:
    source = "import matplotlib\nmatplotlib.use('agg')\nfrom matplotlib import pyplot\npyplot.figure()"
    parts = [tutorials.Cell("python", source)]
    (output,) = tutorials.run(parts, tmp_path)
    assert [picture[:4] for picture in output.pictures] == [b"\x89PNG"]
    page = tutorials.page("small", parts, [output])
    assert "](small-1.png)\n" in page
    assert tutorials.without_outputs(page) == tutorials.page("small", parts)


def test_a_failing_shell_line_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="told why"):
        tutorials.run([tutorials.Cell("bash", "echo told why >&2\nfalse | true")], tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_a_stored_page_has_the_cells_of_its_script(name: str) -> None:
    stored = (FOLDER / f"{name}.md").read_text()
    expected = tutorials.page(name, list(tutorials.cells((FOLDER / f"{name}.py").read_text())))
    assert tutorials.without_outputs(stored) == expected, f"run: python docs/_site/tutorials.py {name}"
    named = set(re.findall(rf"\(({name}-\d+\.png)\)", stored))
    assert named == {path.name for path in FOLDER.glob(f"{name}-*.png")}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_tutorial_runs(name: str, tmp_path: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(SCRIPT), name, "--out", str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    stored, new = ((folder / f"{name}.md").read_text() for folder in (FOLDER, tmp_path))
    for pattern in (tutorials.OUTPUT, tutorials.PICTURE):  # as many of each as are stored
        assert len(pattern.findall(new)) == len(pattern.findall(stored))
