"""Classifiers of probes: stored by runs, loaded with their backbone, as accurate as reported."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
import torch

import ssl_lightning
from ssl_lightning.artifacts.classifiers import Classifier
from ssl_lightning.artifacts.records import best_stage
from ssl_lightning.artifacts.results import read_results
from ssl_lightning.artifacts.run_folder import classifier_files
from ssl_lightning.config.trust import load_config
from ssl_lightning.data.fake import Fake
from ssl_lightning.run.evaluate import evaluate
from tests.refusals._run import make_run

SMALL = ["probe=[knn,linear,finetune]", "probe.finetune.fractions=[0.5,1.0]", "probe.finetune.epochs=1",
         "probe.finetune.min_steps=4", "data.num_test=40", "data.num_train=96", "task.decoder_width=8",
         "task.discriminator_width=8"]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"), "task=super_resolution", *SMALL)


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def accuracy(classifier: Classifier) -> float:
    """Test top-1 on the data of `SMALL`."""
    data = Fake(num_train=96, num_test=40, heldout=16, batch_size=8, image_size=16)
    ((images, labels),) = list(data.downstream("test"))
    with torch.no_grad():
        logits = classifier(classifier.transform(images))
    assert logits.shape == (40, 4)
    assert classifier.class_names == data.spec.class_names
    return float((logits.argmax(1) == labels).float().mean())


@pytest.mark.parametrize("branch", ["backbone", "discriminator"])
@pytest.mark.parametrize("probe", ["linear", "finetune"])
def test_it_is_as_accurate_as_reported(run: Path, probe: str, branch: str) -> None:
    classifier = ssl_lightning.load_classifier(run, probe, branch=branch)
    records = [
        record
        for record in read_results(run / "results.json").probes
        if (record.probe, record.branch, record.metric, record.trained) == (probe, branch, "top1", True)
    ]
    if probe == "finetune":
        records = [record for record in records if record.protocol["fraction"] == 1.0]
    best = best_stage(records)
    assert best is not None
    assert classifier.facts["stage"] == best.stage
    assert classifier.facts["test"] == best.value
    assert accuracy(classifier) == pytest.approx(best.value, abs=1 / 40 + 1e-6)
    assert not classifier.training


def test_the_linear_head_does_not_repeat_the_exported_backbone(run: Path) -> None:
    size = classifier_files(run, "linear", "backbone")[0].stat().st_size
    assert size < (run / "backbone.safetensors").stat().st_size
    (run / "backbone.safetensors").write_bytes(
        (run / "classifier_linear_discriminator.safetensors").read_bytes()
    )
    with pytest.raises(
        ValueError, match=r"backbone.safetensors has changed since the probe.*probe=\[linear\]"
    ):
        ssl_lightning.load_classifier(run)
    assert ssl_lightning.load_classifier(run, branch="discriminator")  # it holds its own


def test_a_probe_that_stores_none_names_those_that_do(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"probe knn stores no classifier; allowed are linear, attentive"):
        ssl_lightning.load_classifier(run, "knn")
    monkeypatch.setenv("HOME", str(run.parent))
    assert ssl_lightning.load_classifier(f"~/{run.name}").class_names
    assert ssl_lightning.load_backbone(f"~/{run.name}").transform
    assert ssl_lightning.export(f"~/{run.name}", "hf", "~/exported").folder == run.parent / "exported"


def test_a_run_without_one_gets_it_by_the_suggested_command(run: Path) -> None:
    for path in run.glob("classifier_*"):
        path.unlink()
    with pytest.raises(ValueError, match="holds no classifier of probe linear on branch backbone") as error:
        ssl_lightning.load_classifier(run)
    suggested = shlex.split(str(error.value).split("; ")[-1].partition(" makes ")[0])
    assert suggested == ["python", "evaluate.py", f"run={run}", "probe=[linear]"]
    config = load_config(run / "config.yaml")
    config.checkpoint = "last"
    evaluate(config, run)
    classifier = ssl_lightning.load_classifier(run)
    assert accuracy(classifier) == pytest.approx(classifier.facts["test"])


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 2},
        {"class_names": 3},
        {"stage": "stage9"},
        {"head": {"_target_": "os.system"}},
        {"input": {}},
    ],
)
def test_a_spoilt_description_is_refused(run: Path, change: dict) -> None:
    path = classifier_files(run, "linear", "backbone")[1]
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=r"classifier_linear_backbone.json cannot be loaded"):
        ssl_lightning.load_classifier(run)


def test_an_old_run_names_the_command() -> None:
    old = Path(__file__).parents[1] / "fixtures/run_8a5cf39"
    with pytest.raises(ValueError, match=r"python evaluate.py run=\S+ 'probe=\[linear\]' makes"):
        ssl_lightning.load_classifier(old)
