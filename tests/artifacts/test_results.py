"""Results files: types, atomic writes, old schemas, objectives of sweepers."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssl_lightning.artifacts.answers import Answers
from ssl_lightning.artifacts.records import Evaluation, Record, best_stage
from ssl_lightning.artifacts.results import Results, add_records, objective_value, read_results, write_results
from ssl_lightning.artifacts.run_facts import BenchmarkRow, Health, RunFacts
from ssl_lightning.config.identity import config_sha256
from ssl_lightning.core.atomic_files import write_json
from ssl_lightning.report.results_schema import SCHEMA_PATH, results_schema, schema_text

ROOT = Path(__file__).parents[2]
STORED = sorted((ROOT / "docs/results").rglob("results.json"))
FACTS = RunFacts(
    task="rotation", data="cifar10", backbone="convnet", seed=0, epochs=1, wall_s=1.5, images_per_s=20.0,
    git="", versions={"torch": "2.15"}, config_sha256="0" * 64, status="finished",
)  # fmt: skip


def record(probe: str, stage: str, value: float, heldout: float | None, trained: bool = True) -> Record:
    protocol = {} if heldout is None else {"heldout": heldout}
    return Record(stage, "top1", value, 100, protocol, probe=probe, branch="backbone", trained=trained)


def results(*records: Record, pretext: dict[str, float] | None = None) -> Results:
    return Results(FACTS, pretext or {}, list(records))


def text_of(content: Any) -> Any:
    return json.loads(json.dumps(content))


def test_a_failed_write_leaves_the_old_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_results(path, results())
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_results(path, results(Record("stage1", "top1", 0.5, 1, {"a": [2] * 10_000, "b": object()})))
    with pytest.raises(TypeError):
        write_json(path, {"a": [2] * 10_000, "b": object()})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_every_field_is_written_and_read(tmp_path: Path) -> None:
    health = Health(10, 5, None, 2.0, 0.75, "dead")
    facts = replace(
        FACTS, devices=2, precision="32-true", probe_s={"knn_s": 1.0}, peak_memory_gb={"host": 2.5},
        resumed=1, series_sha256="f" * 64, benchmark=BenchmarkRow("six", "rotation", "cpu"),
        command="python train.py", ended="2026-01-01T00:00:00+00:00", labels="none", health=health,
    )  # fmt: skip
    added = replace(record("knn", "stage1", 0.4, 0.5), evaluation=Evaluation("stl10", "last", "abc", "x"))
    rank = Record("stage2", "rankme", 12.5, 20, {"heldout": None}, probe="rankme", split="pretrain")
    stored = Results(facts, {"val/acc": 0.5}, [record("knn", "stage1", 0.4, 0.5), added, rank])
    write_results(tmp_path / "results.json", stored)
    assert read_results(tmp_path / "results.json") == stored
    jsonschema.validate(json.loads((tmp_path / "results.json").read_text()), results_schema())
    assert health.bad
    assert not replace(health, verdict="good", zero_grad_share=0.5).bad


VALUES = st.sampled_from([None, True, False, 1, 0, 1.0, "a", [1], [True], {"b": 1}])  # 1 == True == 1.0
PROTOCOLS = st.dictionaries(st.sampled_from("abcd"), VALUES).map(lambda found: found | {"heldout": 0.5})


@given(st.lists(st.tuples(st.sampled_from(["knn", "linear"]), st.booleans(), PROTOCOLS), max_size=6))
def test_shared_protocols_unfold_to_the_same_records(found: list[tuple[str, bool, dict[str, Any]]]) -> None:
    records = [
        Record("stage1", "top1", 0.5, 9, its, probe=probe, evaluation=Evaluation("x") if later else None)
        for probe, later, its in found
    ]
    content = text_of(results(*records).to_json())
    assert len(content["protocols"]) == len({(probe, later) for probe, later, _ in found})
    again = Results.from_json(content).probes
    # as text: 1 and true are equal in Python
    assert [json.dumps(r.protocol, sort_keys=True) for r in again] == [
        json.dumps(r.protocol, sort_keys=True) for r in records
    ]
    assert again == records


def test_a_file_of_schema_1_reads_as_the_new_form_of_it() -> None:
    old = json.loads((ROOT / "tests/fixtures/run_8a5cf39/results.json").read_text())
    assert old["schema"] == 1
    read = Results.from_json(old)
    assert read.probes[0].protocol == old["probes"][0]["protocol"]
    new = text_of(read.to_json())
    assert new["schema"] == 2
    assert Results.from_json(new) == read


@pytest.mark.parametrize("path", STORED, ids=lambda path: "/".join(path.parts[-3:-1]))
def test_the_stored_tables_read_and_write_back_equal(path: Path, tmp_path: Path) -> None:
    jsonschema.validate(json.loads(path.read_text()), results_schema())
    write_results(tmp_path / "results.json", read_results(path))
    assert (tmp_path / "results.json").read_bytes() == path.read_bytes()


def test_the_json_schema_is_up_to_date() -> None:
    assert SCHEMA_PATH.read_text() == schema_text(), "run: python -m ssl_lightning.report.results_schema"
    jsonschema.Draft202012Validator.check_schema(results_schema())


def test_the_json_schema_refuses_what_the_reader_refuses() -> None:
    good = text_of(results(record("knn", "stage1", 0.5, 0.5)).to_json())
    jsonschema.validate(good, results_schema())
    for place, value in (
        (("run", "seed"), "0"),
        (("run", "status"), "done"),
        (("run", "config_sha256"), "0"),
        (("run", "owner"), "me"),
        (("probes", 0, "value"), 1.5),
        (("probes", 0, "stage"), "first"),
        (("probes", 0, "protocol"), {}),
    ):
        bad = text_of(good)
        parent = bad
        for key in place[:-1]:
            parent = parent[key]
        parent[place[-1]] = value
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(bad, results_schema())
        with pytest.raises(ValueError, match="foreign: "):
            Results.from_json(bad)


def test_results_are_read_without_torch() -> None:
    code = "import sys, ssl_lightning.artifacts.results; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_a_later_evaluation_adds_what_is_not_there() -> None:
    stored = results(record("knn", "stage1", 0.4, 0.5))
    again = [record("knn", "stage1", 0.4, 0.5), record("knn", "stage1", 0.4, 0.6)]
    assert add_records(stored, again, Evaluation("cifar10", "last")) == 1
    assert add_records(stored, again, Evaluation("cifar10", "best")) == 2
    assert [r.evaluation for r in stored.probes] == [None, Evaluation("cifar10", "last")]
    assert add_records(stored, again, Evaluation("stl10")) == 0


def test_a_later_evaluation_adds_the_answers_that_a_record_lacks() -> None:
    stored = results(record("knn", "stage1", 0.4, 0.5))
    answers = Answers(b"\xf0", b"\0\0\0\0" * 8, "0" * 12)
    again = replace(stored.probes[0], answers=answers)
    assert add_records(stored, [again], Evaluation("cifar10")) == 1
    assert (stored.probes, stored.probes[0].answers) == ([again], answers)
    other = replace(again, answers=replace(answers, right=b"\x0f"))
    assert add_records(stored, [other], Evaluation("cifar10")) == 1
    assert stored.probes[0].answers == answers


def test_the_digest_sees_the_science_and_nothing_else() -> None:
    base = {"seed": 0, "optimizer": {"lr": 0.1}, "run_dir": "/a", "name": "x"}
    assert config_sha256(base) == config_sha256(base | {"run_dir": "/b", "name": "y"})
    assert config_sha256(base) != config_sha256(base | {"optimizer": {"lr": 0.2}})
    assert config_sha256(base) != config_sha256(base | {"seed": 1})


def test_the_best_stage_is_not_chosen_on_test() -> None:
    records = [record("linear", "stage1", 0.9, 0.3), record("linear", "stage2", 0.5, 0.6)]
    assert best_stage(records) == records[1]
    assert best_stage([]) is None
    deep = [record("linear", f"stage{depth}", 0.5, None) for depth in (2, 10)]
    assert best_stage(deep) == deep[1]


def test_objective_is_the_heldout_figure_of_the_trained_backbone() -> None:
    rows = [record("linear", "stage1", 0.5, 0.7, trained=False), record("linear", "stage1", 0.4, 0.6)]
    both = results(*rows, pretext={"val/loss": 1.5})
    assert objective_value(both, "probe/linear/top1") == 0.6
    assert objective_value(both, "pretext/val/loss") == 1.5
    # a control without training has only untrained records
    assert objective_value(results(rows[0]), "probe/linear/top1") == 0.7


def test_a_rank_of_unlabelled_images_may_be_an_objective() -> None:
    rows = [record("rankme", f"stage{depth}", value, None) for depth, value in ((1, 90.0), (2, 12.5))]
    rows = [replace(r, metric="rankme", split="pretrain") for r in rows]
    assert objective_value(results(*rows), "probe/rankme/rankme") == 12.5  # of the deepest stage


@pytest.mark.parametrize("objective", ["probe/knn/top1", "pretext/val/acc", "nonsense"])
def test_an_unknown_objective_names_those_there_are(objective: str) -> None:
    stored = results(record("linear", "stage1", 0.4, 0.6), pretext={"val/loss": 1.5})
    with pytest.raises(ValueError, match="pretext/val/loss, probe/linear/top1"):
        objective_value(stored, objective)
