"""Settings that follow from the data, against the experiments on CIFAR-10."""

import pytest
from omegaconf import OmegaConf

from ssl_lightning.config.composition import compose
from ssl_lightning.config.task_settings import SETTINGS, length

GROUPS = ("task", "optimizer", "scheduler")


@pytest.mark.parametrize("task", SETTINGS)
def test_the_experiments_on_cifar10_are_the_case_of_45000_images(task: str) -> None:
    experiment = compose("train", [f"experiment=cifar10_{task}", "name=one"])
    chosen = compose("train", [f"task={task}", *SETTINGS[task].overrides(45_000), "name=one"])
    for group in GROUPS:
        assert OmegaConf.to_container(experiment[group]) == OmegaConf.to_container(chosen[group])
    assert experiment.data.batch_size == chosen.data.batch_size


def test_few_images_get_a_small_batch_and_a_lower_rate() -> None:
    chosen = dict(o.split("=", 1) for o in SETTINGS["jigsaw"].overrides(130))
    assert int(chosen["data.batch_size"]) == 16
    assert float(chosen["optimizer.lr"]) == pytest.approx(0.05 / 4)
    chosen = dict(o.split("=", 1) for o in SETTINGS["jigsaw"].overrides(3))
    assert int(chosen["data.batch_size"]) == 8


@pytest.mark.parametrize("task", SETTINGS)
def test_given_weights_get_a_tenth_of_the_rate(task: str) -> None:
    plain, continued = (SETTINGS[task].overrides(9_000, continued=given) for given in (False, True))
    assert continued == [*plain, "task.backbone_lr_factor=0.1"]
    cfg = compose("train", [f"task={task}", *continued, "name=one"])
    assert (cfg.task.backbone_lr_factor, cfg.task.freeze_until) == (0.1, 0)


@pytest.mark.parametrize("seen", [1, 64, 500, 6_400, 10_000, 60_000])
def test_a_length_sees_about_so_many_images(seen: int) -> None:
    given = dict(o.split("=") for o in length(seen, 6_400, 64))
    steps = int(given.get("trainer.limit_train_batches", 100)) * int(given["trainer.max_epochs"])
    assert abs(steps - seen / 64) <= 50  # half an epoch
