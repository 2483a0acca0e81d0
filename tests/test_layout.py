"""Tests of the package layout: import layers, light rooms, unique names, three files per task."""

import ast
import re
import subprocess
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest
from omegaconf import OmegaConf

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "ssl_lightning"
# A room imports only from rooms in earlier lines of this table
LAYERS = (
    ("core",),
    ("config", "ops", "data", "features"),
    ("networks", "artifacts"),
    ("engine", "report"),
    ("tasks", "probes", "launch"),
    ("callbacks",),
    ("run",),
    ("bench",),
)
ROOMS = [room for layer in LAYERS for room in layer]
LOOSE = {"__init__.py", "__main__.py", "py.typed"}
SEPARATE = ("run", "launch")  # `run` stands below `launch` in the table, but must not import it
LIGHT = [*PACKAGE.glob("config/*.py"), *PACKAGE.glob("launch/*.py"), *PACKAGE.glob("core/*.py")]
LIGHT.append(PACKAGE / "artifacts/run_folder.py")
HEAVY = {"seeding.py"}  # in core; imports torch
USES_TIMM = {"networks/vit.py", "networks/mae_decoder.py"}  # other runs start without it, a second earlier
QUESTIONS = {"What", "How", "Which", "Whether", "Where"}  # no module docstring starts so
SHARED_NAMES = {"main"}  # every command has one
BASES = (  # they know no task and no data set
    "tasks/base.py",
    "tasks/_training.py",
    "data/base.py",
    "data/_loaders.py",
    "probes/base.py",
    "probes/_runner.py",
    "run/execute.py",
)


def modules(room: str) -> list[Path]:
    return sorted((PACKAGE / room).rglob("*.py"))


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imported_rooms(path: Path) -> set[str]:
    """Rooms that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(parsed(path)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("ssl_lightning.")}
    return found


def test_every_file_lies_in_a_room() -> None:
    entries = {p.name for p in PACKAGE.iterdir() if p.name != "__pycache__"}
    assert entries - LOOSE == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_imports_run_one_way(room: str) -> None:
    layer = next(number for number, rooms in enumerate(LAYERS) if room in rooms)
    allowed = {each for rooms in LAYERS[:layer] for each in rooms} | {room}
    if room in SEPARATE:
        allowed -= set(SEPARATE) - {room}
    for path in modules(room):
        extra = imported_rooms(path) - allowed
        assert not extra, f"{path.relative_to(ROOT)} imports {sorted(extra)}"


def test_light_modules_import_without_torch() -> None:
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in LIGHT
        if path.name not in HEAVY
    ]
    # fork gives each module a fresh process; the parent has imported hydra, which takes longest, but no torch
    code = f"""
import hydra, importlib, os, sys
failed = []
for name in {names!r}:
    pid = os.fork()
    if not pid:
        importlib.import_module(name)
        os._exit("torch" in sys.modules)
    failed += [name] if os.waitpid(pid, 0)[1] else []
sys.exit(", ".join(failed) or 0)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_slow_libraries_are_imported_where_they_are_used() -> None:
    for path in PACKAGE.rglob("*.py"):
        names = [node.names[0].name for node in parsed(path).body if isinstance(node, ast.Import)]
        names += [str(node.module) for node in parsed(path).body if isinstance(node, ast.ImportFrom)]
        if str(path.relative_to(PACKAGE)) not in USES_TIMM:
            assert not {name.split(".")[0] for name in names} & {"timm", "kornia"}, path


def test_a_public_name_exists_in_one_room() -> None:
    """Check classes, functions, and constants that another file imports."""
    trees = {path: parsed(path) for path in PACKAGE.rglob("*.py")}
    imported = {
        (node.module, alias.name)
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    places = defaultdict(set)
    for path, tree in trees.items():
        room = path.relative_to(PACKAGE).parts[0]
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for node in tree.body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_"):
                places[node.name].add(room)
            for name in ast.walk(node) if isinstance(node, (ast.Assign, ast.AnnAssign)) else ():
                if isinstance(name, ast.Name) and (module, name.id) in imported:
                    places[name.id].add(room)
    twice = {name: sorted(rooms) for name, rooms in places.items() if len(rooms) > 1}
    assert twice.keys() <= SHARED_NAMES, twice


def test_ops_define_no_module() -> None:
    for path in modules("ops"):
        text = path.read_text()
        assert not re.search(r"nn\.Module\b", text), path


@pytest.mark.parametrize("folder", ["tasks", "data", "probes"])
def test_each_module_has_its_config_and_its_test(folder: str) -> None:
    group = folder.removesuffix("s") if folder != "data" else folder
    found = {p.stem for p in (PACKAGE / folder).glob("[!_]*.py")} - {"base"}  # _*: shared code
    configs = {p.stem for p in (ROOT / "conf" / group).glob("*.yaml")}
    tests = {p.stem.removeprefix("test_") for p in (ROOT / "tests" / folder).glob("test_*.py")}
    assert found == configs
    assert found <= tests
    for name in configs:
        target = OmegaConf.load(ROOT / "conf" / group / f"{name}.yaml")._target_
        assert target.startswith(f"ssl_lightning.{folder}.{name}."), target


def test_the_base_class_knows_no_task_and_no_data() -> None:
    names = {p.stem for folder in ("task", "data") for p in (ROOT / "conf" / folder).glob("*.yaml")}
    for base in BASES:
        words = {node.id for node in ast.walk(parsed(PACKAGE / base)) if isinstance(node, ast.Name)}
        assert not words & (names - {"random", "folder"}), base


PATHS = re.compile(
    r"`((?:ssl_lightning|conf|tests|docs|outputs)?/?[\w/]+\.(?:py|yaml|md|json|toml))`|\b(\w+/[\w/]+\.(?:py|md))\b"
)
WRITTEN = {
    "index.json",
    "config.yaml",
    "results.json",
    "error.txt",
    "evaluation.yaml",
    "backbone.json",
    "bad_batch.json",
    "config.json",
    "model.json",
    "preprocessing.json",
}


def test_module_docstrings_are_one_line() -> None:
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        text = ast.get_docstring(parsed(path)) or ""
        if len(text.splitlines()) != 1 or text.split()[0] in QUESTIONS:
            wrong.append(f"{path.relative_to(ROOT)}: {text!r}")
    assert not wrong


def test_files_named_in_docstrings_and_comments_exist() -> None:
    missing = []
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "conf").rglob("*.yaml")]:
        text = path.read_text()
        for match in PATHS.finditer(text):
            name = match[1] or match[2]
            places = (ROOT / name, PACKAGE / name, path.parent / name)
            if Path(name).name not in WRITTEN and not any(place.exists() for place in places):
                missing.append(f"{path.relative_to(ROOT)}: {name}")
        missing += [f"{path.relative_to(ROOT)}: {word}" for word in re.findall(r"\bDESIGN\.md\b", text)]
    assert not missing
