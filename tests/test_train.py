"""Tests of `train.py` as a user runs it: in its own process, on generated data."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from ssl_lightning.artifacts.checkpoints import load_checkpoint
from ssl_lightning.artifacts.results import Results, read_results
from tests.refusals._run import digests

ROOT = Path(__file__).parent.parent
SCHEMA = json.loads((ROOT / "ssl_lightning/report/results.schema.json").read_text())
# three steps of one epoch; tests/test_user_loop.py and tests/test_resume.py train three epochs
SMALL = ["data=fake", "trainer=debug", "probe.knn.ks=[5]", "probe_untrained=true"]


def train(tmp_path: Path, *overrides: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "train.py"), f"output_dir={tmp_path}", "name=run", *overrides]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "SSL_LIGHTNING_DATA": str(tmp_path / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, cwd=tmp_path)
    assert (done.returncode == 0) == ok, done.stdout + done.stderr
    return done


def results_of(folder: Path) -> Results:
    path = folder / "results.json"
    jsonschema.validate(json.loads(path.read_text()), SCHEMA)
    return read_results(path)


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The output folder and the standard output of a complete run."""
    place = tmp_path_factory.mktemp("complete")
    done = train(place, *SMALL, "task=rotation", "logger=[csv,tensorboard]")
    return place, done.stdout


def test_a_complete_run(complete: tuple[Path, str]) -> None:
    place, output = complete
    folder = place / "rotation/fake/convnet/run"
    results = results_of(folder)
    assert results.run.status == "finished"
    assert (results.run.task, results.run.data) == ("rotation", "fake")
    assert results.run.labels == "none"
    assert results.pretext.keys() == {"val/loss", "val/acc"}
    rows = {(r.probe, r.stage, r.trained, r.metric) for r in results.probes}
    for stage in ("stage1", "stage2", "stage3"):
        for trained in (False, True):
            assert ("linear", stage, trained, "top1") in rows
            assert ("knn", stage, trained, "top1") in rows
    for name in ("config.yaml", "panel.png", "metrics.csv", "checkpoints/last.ckpt", "checkpoints/best.ckpt"):
        assert (folder / name).stat().st_size > 0, name
    assert re.fullmatch(r".*\S, \d+ threads?", str(results.run.machine))  # a processor
    assert "untrained" in output
    assert f"run folder: {folder}" in output
    assert output.splitlines()[-1] == f"verdict: {results.run.verdict}"


@pytest.mark.slow
def test_the_random_control_is_where_every_task_starts(complete: tuple[Path, str], tmp_path: Path) -> None:
    place, _ = complete
    train(tmp_path, *SMALL, "task=random", "logger=[]")
    before = [r for r in results_of(place / "rotation/fake/convnet/run").probes if not r.trained]
    assert results_of(tmp_path / "random/fake/convnet/run").probes == before


# tasks without random draws, or with the same draws in any number of processes
EQUAL = {
    "rotation": [],
    "combined": [
        "task.parts=[rotation,colorization,simclr,pirl,barlow_twins,vicreg]",
        "task.weights=[1,0.1,0.1,0.1,0.01,0.1]", "+task.options.simclr.hidden=32",
        "+task.options.barlow_twins={hidden:32,embedding:16}", "+task.options.vicreg.hidden=32",
    ],
    "simclr": ["task.hidden=32", "optimizer.lr=0.001"],  # its first gradients are large
    "byol": ["task.hidden=32", "optimizer.lr=0.001", "task.momentum=0.5"],
    "dino": ["task.hidden=32", "optimizer.lr=0.001", "task.momentum=0.5"],
    "lejepa": ["task.hidden=32", "optimizer.lr=0.001"],
    "inpainting": [
        "task.mask=center", "task.adversarial_weight=0.5", "task.instance_noise=0", "optimizer.lr=0.003",
    ],
    "super_resolution": [
        "trainer.accumulate_grad_batches=2", "trainer.gradient_clip_val=0.1", "task.warmup_steps=1",
        "task.instance_noise=0",
    ],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("task", EQUAL)
def test_two_processes_equal_one(tmp_path: Path, task: str) -> None:
    # SGD with a small lr does not amplify rounding in 3 steps
    few = [*SMALL, f"task={task}", "optimizer=sgd", "optimizer.lr=0.01", *EQUAL[task]]
    train(tmp_path, *few, "name=one")
    train(tmp_path, *few, "name=two", "trainer.devices=2")
    folders = [tmp_path / f"{task}/fake/convnet/{name}" for name in ("one", "two")]
    one, two = (results_of(folder) for folder in folders)
    assert (one.run.devices, two.run.devices) == (1, 2)
    assert len(two.probes) == len(one.probes)
    weights = [load_file(folder / "backbone.safetensors") for folder in folders]
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():  # including batch-norm statistics
        torch.testing.assert_close(weights[1][name], value, rtol=1e-3, atol=1e-4, msg=name)
    states = [load_checkpoint(folder / "checkpoints/last.ckpt")["state_dict"] for folder in folders]
    for name, value in states[0].items():  # heads, decoders, discriminators
        torch.testing.assert_close(states[1][name], value, rtol=1e-3, atol=1e-4, msg=name)
    assert two.pretext == pytest.approx(one.pretext, rel=1e-3)
    # the same images in the same order: two processes lose and repeat none
    untrained = [[r for r in result.probes if not r.trained] for result in (one, two)]
    for left, right in zip(*untrained, strict=True):
        assert right.n == left.n
        assert right.value == pytest.approx(left.value, abs=1 / left.n + 1e-9)


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_run_with_its_message(tmp_path: Path) -> None:
    # kill rank 1 while both train
    command = [sys.executable, str(ROOT / "train.py"), f"output_dir={tmp_path}", "name=run", *SMALL[:1]]
    command += ["trainer=cpu", "trainer.devices=2", "trainer.max_epochs=1000", "probe=[]", "logger=[]"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    folder = tmp_path / "rotation/fake/convnet/run"
    while not (folder / "checkpoints/last.ckpt").exists():
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(rank_process(folder, 1), signal.SIGKILL)
    began = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert time.monotonic() - began < 30
    assert "error: rank 1 of the run ended with signal SIGKILL" in errors


def rank_process(folder: Path, rank: int) -> int:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().decode().split("\0")
                ranked = f"RANK={rank}" in (entry / "environ").read_bytes().decode().split("\0")
                if "ssl_lightning.run" in words and str(folder) in words and ranked:
                    return int(entry.name)
    raise AssertionError(f"no rank {rank} is running")


@pytest.mark.slow
def test_evaluation_reproduces_the_run_and_adds_to_it(complete: tuple[Path, str], tmp_path: Path) -> None:
    place, _ = complete
    folder = Path(shutil.copytree(place / "rotation/fake/convnet/run", tmp_path / "run"))
    before = results_of(folder)
    assert "already has all 6, exactly equal" in evaluate(tmp_path, f"run={folder}").stdout
    assert results_of(folder) == before
    evaluate(tmp_path, f"run={folder}", "probe=[linear]", "probe.linear.pool=1")
    after = results_of(folder)
    assert after.probes[: len(before.probes)] == before.probes
    added = after.probes[len(before.probes) :]
    assert {(r.probe, r.evaluation.data) for r in added} == {("linear", "fake")}
    assert len(added) == 3
    # the exported backbone, as a file from elsewhere
    small = ["data=fake", "trainer=debug", "probe.knn.ks=[5]", "name=again", f"output_dir={tmp_path}"]
    evaluate(tmp_path, f"weights={folder}/backbone.safetensors", *small)
    elsewhere = results_of(tmp_path / "evaluate/fake/convnet/again").probes
    assert elsewhere == [r for r in before.probes if r.trained]
    again = evaluate(tmp_path, f"run={tmp_path}/evaluate/fake/convnet/again")
    assert "already has all 6, exactly equal" in again.stdout


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["run=/no/such/run"], "error: /no/such/run is not there"),
        ([], "error: nothing to evaluate"),
        pytest.param(
            ["weights=/no/such/file.pt", "data=fake"],
            "error: /no/such/file.pt is not there",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_bad_evaluations_are_refused(tmp_path: Path, overrides: list[str], message: str) -> None:
    done = evaluate(tmp_path, *overrides, f"output_dir={tmp_path}", "trainer=debug", ok=False)
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def evaluate(tmp_path: Path, *overrides: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "evaluate.py"), *overrides]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, cwd=tmp_path)
    assert (done.returncode == 0) == ok, done.stdout + done.stderr
    return done


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("rotation", ["trainer.precision=32-true"]),
        ("rotation", ["trainer.precision=bf16-mixed", "trainer.devices=2", "trainer.log_every_n_steps=4"]),
        ("inpainting", ["task.adversarial_weight=0.5", "trainer.accumulate_grad_batches=2"]),
        ("super_resolution", ["task.warmup_steps=2", "trainer.devices=2", "trainer.log_every_n_steps=50"]),
        ("byol", ["task.hidden=32"]),
    ],
)
def test_training_that_diverges_names_the_step_and_the_checkpoint(
    tmp_path: Path, task: str, options: list[str]
) -> None:
    long = ["trainer.limit_train_batches=1.0", "trainer.max_epochs=3", "scheduler=constant", f"task={task}"]
    small = ["data.batch_size=8", "callbacks.checkpoint.every_n_steps=2"]  # 24 batches an epoch
    done = train(tmp_path, *SMALL, *long, *small, "optimizer=sgd", "optimizer.lr=1e30", *options, ok=False)
    folder = tmp_path / f"{task}/fake/convnet/run"
    assert done.stderr.count("error:") == 1
    assert "What may help: a lower optimizer.lr (now 1e+30)" in done.stderr
    assert "Traceback" not in done.stderr
    facts = json.loads((folder / "bad_batch.json").read_text())
    assert facts["step"] <= 24
    assert f"at step {facts['step']} (epoch 1, batch {facts['batch']})" in done.stderr
    assert len(set(facts["images"])) == len(facts["images"])
    assert len(facts["images"]) in (8, 16)
    results = results_of(folder)
    assert results.run.status == "failed"
    assert results.probes  # records of the untrained backbone
    for path in (folder / "checkpoints").glob("*.ckpt"):
        state = load_checkpoint(path)["state_dict"]
        assert all(value.isfinite().all() for value in state.values()), path


def test_a_run_folder_is_not_overwritten(complete: tuple[Path, str]) -> None:
    place, _ = complete
    folder = place / "rotation/fake/convnet/run"
    before = digests(folder)
    done = train(place, *SMALL, "task=rotation", "seed=1", ok=False)
    assert "already holds a run" in done.stderr
    assert digests(folder) == before


@pytest.mark.slow
def test_slurms_warning_saves_requeues_and_resumes(tmp_path: Path) -> None:
    scontrol = tmp_path / "bin/scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/requeued\n')
    scontrol.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{scontrol.parent}:{os.environ['PATH']}", "SLURM_JOB_ID": "42", "SLURM_NTASKS": "1",
    }  # fmt: skip
    command = [sys.executable, str(ROOT / "train.py"), f"output_dir={tmp_path}", "name=42", "data=fake"]
    command += [
        "trainer=cpu",
        "probe=[]",
        "trainer.max_epochs=40",
        "backbone.widths=[8]",
        "backbone.strides=[2]",
    ]
    folder = tmp_path / "rotation/fake/convnet/42"
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    while not (folder / "checkpoints/last.ckpt").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    output, _ = process.communicate(timeout=60)
    assert "put back into the queue" in output
    assert (tmp_path / "requeued").read_text() == "requeue 42\n"
    again = subprocess.run(
        command, env=environment | {"SLURM_RESTART_COUNT": "1"}, capture_output=True, text=True, check=False
    )
    assert again.returncode == 0, again.stderr
    assert f"resumed   from {folder}" in again.stdout
    assert results_of(folder).run.status == "finished"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task=rotaton"], "did you mean rotation?"),
        (["task.copies=3"], "error: task.copies is 3; allowed are 4"),
        pytest.param(
            ["data=folder", "data.pretrain_dir=/no/such/folder"], "/no/such/folder", marks=pytest.mark.slow
        ),
        (["trainer=gpu"], "error: trainer.accelerator is 'gpu', but torch sees no GPU"),
        pytest.param(
            ["backbone=timm", "backbone.model_name=resnet19"], "did you mean", marks=pytest.mark.slow
        ),
    ],
)
def test_bad_input_is_one_clear_error(tmp_path: Path, overrides: list[str], message: str) -> None:
    """Check that an error reaches the terminal; tests/refusals/test_config.py has the table of errors."""
    if "trainer=gpu" in overrides and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = train(tmp_path, *SMALL, *overrides, ok=False)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("results.json"))


@pytest.mark.slow
def test_tiles_for_a_probe_of_masks_are_refused_before_training(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        for kind, mode in ((split, "RGB"), (f"{split}annot", "L")):
            (tmp_path / "roads" / kind).mkdir(parents=True)
            for number in range(2):
                noise = Image.effect_noise((48, 48), 50).convert("RGB")
                picture = noise if mode == "RGB" else Image.new("L", (48, 48))
                picture.save(tmp_path / "roads" / kind / f"{number}.png")
    options = ["data=camvid", f"data.dir={tmp_path / 'roads'}", "data.image_size=32", "data.size=[48,48]"]
    views = [
        "task=jigsaw",
        "encoding.input=views",
        "probe=[segmentation]",
        "trainer=debug",
        "data.batch_size=2",
    ]
    done = train(tmp_path, *options, *views, ok=False)
    assert "error: probe segmentation needs whole images, not tiles: encoding.input=image" in done.stderr
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.slow
def test_weights_from_elsewhere_are_recorded(complete: tuple[Path, str], tmp_path: Path) -> None:
    first = complete[0] / "rotation/fake/convnet/run"
    train(tmp_path, *SMALL, "task=random", "logger=[]", f"init_from={first}")
    run = results_of(tmp_path / "random/fake/convnet/run").run
    assert run.labels == "unknown: the first weights of the backbone come from elsewhere"


@pytest.mark.slow
def test_a_sweep_of_two_process_runs_makes_one_folder_per_job(tmp_path: Path) -> None:
    sweep = ["task=random,rotation", "seed=0,1", "trainer=cpu", "trainer.devices=2"]
    quick = ["data=fake", "trainer.max_epochs=1", "probe=[knn]", "probe.knn.ks=[5]", "logger=[]"]
    train(tmp_path, *quick, *sweep, "-m")
    found = sorted(str(path.parent.relative_to(tmp_path)) for path in tmp_path.rglob("results.json"))
    tasks = ("random", "random", "rotation", "rotation")
    assert found == [f"{task}/fake/convnet/run_{number}" for number, task in enumerate(tasks)]
    # the finished jobs do not run again, the new one does
    done = train(tmp_path, *quick, "task=rotation", "seed=1,2", "skip_finished=true", "name=more", "-m")
    assert done.stdout.count("skipped:") == 1
    assert [p.parent.name for p in tmp_path.rglob("*/more_*/results.json")] == ["more_1"]
    assert not list(tmp_path.rglob("more_0"))


@pytest.mark.slow
def test_a_job_that_fails_leaves_the_others_and_is_reported(tmp_path: Path) -> None:
    sweep = ["task=random", "probe=[knn]", "probe.knn.ks=[0],[5]", "logger=[]"]
    done = train(tmp_path, "data=fake", "trainer=debug", *sweep, "-m", ok=False)
    assert "probe.knn.ks is [0]" in done.stderr
    assert [path.parent.name for path in tmp_path.rglob("results.json")] == ["run_1"]


@pytest.mark.slow
def test_two_processes_fine_tune_like_one(tmp_path: Path) -> None:
    some = [
        "data=fake",
        "trainer=debug",
        "task=rotation",
        "probe=[finetune]",
        "optimizer.lr=0.01",
        "logger=[]",
    ]
    some += ["probe.finetune.fractions=[1.0]", "probe.finetune.epochs=2", "probe.finetune.min_steps=1"]
    some += ["probe.finetune.lr=1e-4", "probe.finetune.head_lr=1e-3"]  # does not amplify rounding
    found = []
    for devices in (1, 2):
        train(tmp_path, *some, f"name=on{devices}", f"trainer.devices={devices}")
        results = results_of(tmp_path / f"rotation/fake/convnet/on{devices}")
        assert results.run.devices == devices
        found.append(results.probes)
    (one,), (two,) = found
    assert one.protocol["labels"] == two.protocol["labels"]
    assert two.value == pytest.approx(one.value, abs=2 / one.n + 1e-9)
    assert two.protocol["heldout"] == pytest.approx(one.protocol["heldout"], abs=2 / 64 + 1e-9)


@pytest.mark.slow
def test_every_probe_of_classes_leaves_valid_figures(tmp_path: Path) -> None:
    few = ["probe.lowshot.ks=[1,4]", "probe.lowshot.draws=2", "probe.nonlinear.epochs=1"]
    few += ["probe.finetune.fractions=[0.5]", "probe.finetune.epochs=1", "probe.finetune.min_steps=1"]
    names = ["lowshot", "svm", "nonlinear", "attentive", "finetune", "rankme", "embedding"]
    some = ["data=fake", "trainer=debug", "task=random", f"probe=[{','.join(names)}]", "logger=[]"]
    done = train(tmp_path, *some, *few)
    folder = tmp_path / "random/fake/convnet/run"
    results = results_of(folder)  # checks each record against the schema
    assert {r.probe for r in results.probes} == set(names) - {"embedding"}
    for column in (
        "lowshot 1-shot",
        "lowshot 4-shot",
        "svm",
        "nonlinear",
        "attentive",
        "finetune 50 %",
        "rankme (rank)",
    ):
        assert column in done.stdout
    assert (folder / "embedding.npz").exists()
    assert (folder / "neighbours.png").exists()


@pytest.mark.slow
def test_a_run_that_holds_nothing_out_trains_resumes_and_tests_the_last_weights(tmp_path: Path) -> None:
    few = ["data=fake", "data.num_train=64", "data.num_test=16", "data.heldout=0", "data.crop_padding=2"]
    few += ["trainer=cpu", "trainer.max_epochs=3", "task=rotation", "probe=[nonlinear,finetune,rankme]"]
    few += [
        "probe.nonlinear.stage=[stage1,stage2]",
        "probe.nonlinear.augment=true",
        "probe.nonlinear.epochs=2",
    ]
    few += ["probe.finetune.fractions=[1.0]", "probe.finetune.epochs=1", "probe.finetune.min_steps=1"]
    done = train(tmp_path, *few)
    assert "held out  nothing (data.heldout is 0): no validation, no best.ckpt" in done.stdout
    assert "epoch 3: features backbone rank" in done.stdout
    assert "zero" not in done.stderr  # Lightning would warn of an empty loader
    folder = tmp_path / "rotation/fake/convnet/run"
    results = results_of(folder)
    assert results.pretext == {}
    assert [(r.probe, r.stage) for r in results.probes][:3] == [
        ("nonlinear", "stage1"),
        ("nonlinear", "stage2"),
        ("finetune", "stage3"),
    ]
    for record in results.probes[:3]:
        assert record.protocol["labels"] == {"train": 64, "heldout": 0}
        assert (record.protocol["selected_on"], record.protocol["heldout"]) == ("nothing", None)
    assert not (folder / "checkpoints/best.ckpt").exists()
    (folder / "results.json").unlink()
    (folder / "checkpoints/previous.ckpt").replace(folder / "checkpoints/last.ckpt")  # after epoch 2
    again = train(tmp_path, f"resume={folder}")
    assert "epoch 2: features" not in again.stdout
    assert results_of(folder).probes == results.probes


@pytest.mark.slow
def test_images_without_labels_have_their_rank_and_their_embedding(tmp_path: Path) -> None:
    for number in range(40):
        picture = np.random.default_rng(number).integers(0, 256, (40, 40, 3), np.uint8)
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(picture).save(tmp_path / f"images/{number:02}.png")
    some = ["data=folder", f"data.pretrain_dir={tmp_path}/images", "data.image_size=32", "data.batch_size=8"]
    some += ["data.num_workers=0", "trainer=debug", "task=rotation", "logger=[]", "probe_untrained=true"]
    done = train(tmp_path, *some, "probe=[linear,rankme,embedding]", "objective=probe/rankme/rankme")
    assert "linear skipped: the data have no labelled images" in done.stdout
    results = results_of(tmp_path / "rotation/folder/convnet/run")
    assert {r.metric for r in results.probes} == {"rankme", "alpha_req", "lidar"}
    found = [(r.probe, r.stage, r.trained) for r in results.probes if r.metric == "rankme"]
    assert found == [("rankme", f"stage{s}", trained) for trained in (False, True) for s in (1, 2, 3)]
    with np.load(tmp_path / "rotation/folder/convnet/run/embedding.npz") as embedding:
        assert embedding["features"].shape == (36, 128)
        assert embedding["names"][0] == str(tmp_path / "images/00.png")
