"""Tests that the commands in README, docs, configs, docstrings and errors exist and compose."""

import ast
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from ssl_lightning.artifacts.export.write import FORMATS
from ssl_lightning.bench.__main__ import SECTIONS
from ssl_lightning.config.composition import compose
from ssl_lightning.config.types import check_types
from ssl_lightning.data.pack.__main__ import _parser as pack_parser
from ssl_lightning.launch import compare
from ssl_lightning.launch.evaluate import evaluation_config
from ssl_lightning.launch.resume import resumed_config
from tests._composed import CONF

ROOT = Path(__file__).parents[1]
RUN = ROOT / "tests/fixtures/run_8a5cf39"
TEXTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted(ROOT.glob("docs/*.md")),
    *sorted(ROOT.glob("conf/*.yaml")),  # tests/test_conf.py composes every file of the groups
    *sorted(ROOT.glob("ssl_lightning/**/*.py")),
]
COMMAND = re.compile(
    r"(?:(?:python |torchrun [^`]* )(?=\w+\.py)|(?:python -m ssl_lightning |ssl-lightning ))(\w+)(?:\.py)?"
    r" +([^` ][^`]*)"
)
OVERRIDE = re.compile(r"(?<![\w/.<>!{}+&?-])[a-z_]+(?:\.[a-z_]+)*=(?:\[[^\]]*\]|[\w./-]*)")
END = re.compile(r"\s+#|\s*-->|\)\"|\"$")  # of the arguments on a line
NO_RUN = ("...", "--help", "--cfg", "-sc", "{")  # arguments that are left out, or print something
REFUSED = "optimizer.lr=1e-3x"  # docs/trust.md shows how this value is refused
# Files whose messages are for users of Python, with arguments of functions instead of keys
PYTHON = (
    "data/objects/",
    "networks/recipes.py",
    "tasks/_batches.py",
    "tasks/_contract.py",
    "tasks/_stored.py",
    "tasks/_training.py",
    "tasks/base.py",
    "run/probe_call.py",
)


def printed_commands(texts: Sequence[Path]) -> Iterator[tuple[str, str]]:
    """Yield the name and the arguments of each command in texts."""
    for path in texts:
        for line in path.read_text().replace("\\\n", " ").splitlines():
            for name, arguments in COMMAND.findall(line):
                told = END.split(arguments)[0].strip()
                if told and REFUSED not in told and not told.startswith(NO_RUN):
                    yield name, " ".join(told.split())


README = set(printed_commands(TEXTS[:1]))
COMMANDS = list(dict.fromkeys(printed_commands(TEXTS)))
CASES = [each if each in README else pytest.param(*each, marks=pytest.mark.slow) for each in COMMANDS]


def sweep(overrides: Sequence[str]) -> list[list[str]]:
    """Return the overrides of each job of a sweep, without Hydra's own and without ranges to search."""
    parsed = OverridesParser.create().parse_overrides(
        [each for each in overrides if not each.startswith(("hydra", "-"))]
    )
    kept = [each for each in parsed if not each.is_sweep_override() or each.is_discrete_sweep()]
    return BasicSweeper.split_arguments(kept, None)[0]


def check(cfg: DictConfig) -> None:
    check_types(OmegaConf.to_container(cfg))  # type: ignore[arg-type]


def check_train(given: list[str]) -> None:
    if resumed := [each for each in given if each.startswith("resume=")]:
        check(resumed_config(RUN, [each for each in given if each not in resumed], CONF))
    else:
        for job in sweep(given):
            check(compose("train", job))


def check_evaluate(given: list[str]) -> None:
    cfg = compose("evaluate", given)
    check(evaluation_config(RUN, cfg, given) if cfg.run else cfg)


def check_report(given: list[str]) -> None:
    named = dict(each.split("=") for each in given)
    assert named.keys() <= OmegaConf.load(CONF / "report.yaml").keys()
    assert (CONF / f"benchmark/{named.get('benchmark', 'cifar10_six')}.yaml").is_file()


def check_export(given: list[str]) -> None:
    named = dict(each.split("=") for each in given)
    assert named.keys() <= OmegaConf.load(CONF / "export.yaml").keys()
    assert named["format"] in FORMATS


def check_bench(given: list[str]) -> None:
    check_train([each for each in given if "=" in each])
    if "--sections" in given:
        words = given[given.index("--sections") + 1 :]
        end = next((at for at, word in enumerate(words) if word.startswith("--")), len(words))
        assert set(words[:end]) <= set(SECTIONS)


def check_audit(given: list[str]) -> None:
    cfg = compose("audit", given)
    assert set(cfg.pop("audit").guards or []) <= set(get_class(cfg.task._target_).guards)
    check(cfg)


def check_compare(given: list[str]) -> None:
    cfg = compose("compare", given)
    own, minutes = cfg.pop("compare"), cfg.pop("minutes")
    compare.check_command(given, minutes, own.tasks, own.seeds)
    check(cfg)


CHECKS = {
    "train": check_train,
    "evaluate": check_evaluate,
    "audit": check_audit,
    "compare": check_compare,
    "report": check_report,
    "export": check_export,
    "bench": check_bench,
    "pack": lambda given: pack_parser().parse_args(given),
}


def test_commands_are_found() -> None:
    found, few = (
        [name for name, _ in COMMANDS],
        {"train": 35, "evaluate": 8, "report": 3, "export": 3, "bench": 7},
    )
    assert {name: found.count(name) >= count for name, count in few.items()} == dict.fromkeys(few, True)


@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_a_printed_command_composes(name: str, arguments: str) -> None:
    text = re.sub(r"<[^>]*>", "somewhere", arguments.replace("$SLURM_JOB_ID", "1"))
    given = shlex.split(text)
    CHECKS[name]([f"run={RUN}" if name == "evaluate" and each.startswith("run=") else each for each in given])


# --- keys that errors name ---


def messages(path: Path) -> Iterator[str]:
    """Yield the texts in a file, with {} for the values in them, without docstrings."""
    tree = ast.parse(path.read_text())
    skipped = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr):
            skipped.add(id(node.value))  # a docstring
        if isinstance(node, ast.JoinedStr):
            skipped |= {id(part) for part in ast.walk(node) if part is not node}
            if id(node) not in skipped:
                parts = [p.value if isinstance(p, ast.Constant) else "{}" for p in node.values]
                yield "".join(map(str, parts))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            yield node.value


@cache
def suggested_overrides() -> list[str]:
    """Return the overrides in messages, without repetitions."""
    return sorted(set(_suggested_overrides()))


def _suggested_overrides() -> Iterator[str]:
    for path in sorted(ROOT.glob("ssl_lightning/**/*.py")):
        if str(path.relative_to(ROOT / "ssl_lightning")).startswith(PYTHON):
            continue
        for message in messages(path):
            if " " not in message:
                continue
            text = re.sub(r"\w+\([^()]*\)", "", message)  # calls in Python
            yield from re.findall(
                r"(?<![\w/.<>!{}+&?-])([a-z_]+(?:\.[a-z_]+)*=(?:\[[^\]]*\]|[\w./-]*))", text
            )


NEEDED = (
    "data=folder",
    "data.pretrain_dir=/photos",
    "backbone=timm",
    "probe=[nonlinear,knn]",
)
OF_TASK = {"task.local_views=0": "dino", "task.on=tiles": "jigsaw"}  # keys that super_resolution lacks
# arguments of timm, of as_backbone and of ImageData, and markup
NO_KEYS = ("features_only", "n", "style", "stages", "channels", "value_range")


def known_keys() -> set[str]:
    """Return every key and group of the commands."""
    known = {path.name for path in CONF.iterdir() if path.is_dir()}
    for path in CONF.glob("*.yaml"):
        known |= {str(key) for key in OmegaConf.load(path)}
    for path in CONF.glob("*/*.yaml"):
        group, content = path.parent.name, OmegaConf.load(path)
        place = f"probe.{path.stem}" if group == "probe" else group
        known |= {f"{place}.{key}" for key in content}
    for name in ("compare", "audit"):
        known |= {f"{name}.{key}" for key in OmegaConf.load(CONF / f"{name}.yaml")[name]}
    known |= {f"encoding.{key}" for key in OmegaConf.load(CONF / "train.yaml").encoding}
    return known


def test_errors_suggest_keys_that_exist() -> None:
    suggested = {each.partition("=")[0] for each in suggested_overrides()} - set(NO_KEYS)
    assert len(suggested) > 30
    assert suggested <= known_keys()


def together(overrides: Iterable[str]) -> Iterator[list[str]]:
    """Yield lists of overrides with as many keys at once as possible, since compositions take long."""
    left = set(overrides)
    while left:
        job = list({each.partition("=")[0]: each for each in sorted(left)}.values())
        yield job
        left -= set(job)


def test_errors_suggest_values_that_exist() -> None:
    written = [
        each
        for each in suggested_overrides()
        if re.search(r"=(\w|\[\w)", each) and not each.startswith(NO_KEYS)
    ]
    assert len(written) > 40
    formats = [each for each in written if each.startswith("format=")]
    assert {each.partition("=")[2] for each in formats} <= set(FORMATS)
    of_audit = [each for each in written if each.startswith("audit.")]
    check_audit(["task=jigsaw", *of_audit])
    values = [each for each in written if "." in each.partition("=")[0] and each not in of_audit]
    left = set(written) - set(formats) - set(values) - set(of_audit)
    jobs = []
    for task in {"super_resolution", *OF_TASK.values()}:
        of_task = [value for value in values if OF_TASK.get(value, "super_resolution") == task]
        jobs += [[*NEEDED, f"task={task}", *job] for job in together(of_task)]
    for job in together(left):
        jobs.append(["data.pretrain_dir=/photos"] * ("data=folder" in job) + job)
    for job in jobs:
        check(compose("train", job))
