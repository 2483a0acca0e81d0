"""The layout of DESIGN.md: who may import whom, and a config for each task, data set and probe."""

import ast
from pathlib import Path

import pytest
from omegaconf import OmegaConf

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "ssl_lightning"
COMMON = {"spec", "seeding", "files", "reading", "cores"}  # imports nothing of the project
ALLOWED = {
    "ops": COMMON,
    "networks": COMMON | {"ops"},
    "data": COMMON,
    "tasks": COMMON | {"ops", "networks", "optim", "graphs"},
    "probes": COMMON | {"ops", "networks", "encoding"},
    "callbacks": COMMON
    | {"ops", "networks", "tasks", "probes", "encoding", "checkpoints", "interrupts", "sharding"},
    "report": COMMON | {"results", "results_file"},
}


def imported_parts(path: Path) -> set[str]:
    """First-level parts of ssl_lightning that a file imports, lazily or not."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("ssl_lightning.")}
    return found


@pytest.mark.parametrize("part", ALLOWED)
def test_imports_run_one_way(part: str) -> None:
    files = list((PACKAGE / part).rglob("*.py"))
    assert files
    for path in files:
        extra = imported_parts(path) - ALLOWED[part] - {part}
        assert not extra, f"{path.relative_to(ROOT)} imports {sorted(extra)}"


@pytest.mark.parametrize("folder", ["tasks", "data", "probes"])
def test_each_module_has_its_config_and_its_test(folder: str) -> None:
    group = folder.removesuffix("s") if folder != "data" else folder
    modules = {p.stem for p in (PACKAGE / folder).glob("[!_]*.py")} - {"base"}  # _*: shared by several
    configs = {p.stem for p in (ROOT / "conf" / group).glob("*.yaml")}
    tests = {p.stem.removeprefix("test_") for p in (ROOT / "tests" / folder).glob("test_*.py")}
    assert modules == configs
    assert modules <= tests
    for name in modules:
        target = OmegaConf.load(ROOT / "conf" / group / f"{name}.yaml")._target_
        assert target.startswith(f"ssl_lightning.{folder}.{name}."), target


def test_the_launcher_does_not_import_torch() -> None:
    import subprocess
    import sys

    code = "import sys, ssl_lightning.launch; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_base_class_knows_no_task_and_no_data() -> None:
    names = {p.stem for folder in ("task", "data") for p in (ROOT / "conf" / folder).glob("*.yaml")}
    for base in ("tasks/base.py", "data/base.py", "probes/base.py", "run.py"):
        words = {
            node.id
            for node in ast.walk(ast.parse((PACKAGE / base).read_text()))
            if isinstance(node, ast.Name)
        }
        assert not words & (names - {"random", "folder"}), base
