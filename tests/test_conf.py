"""Tests of conf/: every file composes into the full config and builds its object."""

from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from hydra.errors import ConfigCompositionException, MissingConfigException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from ssl_lightning.config.types import check_types
from ssl_lightning.core.errors import RunError
from ssl_lightning.core.image_spec import ImageSpec
from ssl_lightning.engine.trainer import make_trainer
from ssl_lightning.launch.train import check_start
from ssl_lightning.run.parts import OURS
from ssl_lightning.tasks.base import PretextTask
from tests._composed import CONF, composed

LISTS = ("probe", "logger", "callbacks")  # groups that take a list of options


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def every_choice() -> list[tuple[str, str]]:
    groups = [path.name for path in CONF.iterdir() if path.is_dir()]
    return [(group, option) for group in sorted(groups) for option in options(group)]


def mandatory(data: str) -> list[str]:
    """Return a value for each key of a data set without default."""
    keys = OmegaConf.to_container(OmegaConf.load(CONF / "data" / f"{data}.yaml"), resolve=False)
    assert isinstance(keys, dict)
    return [f"data.{key}=/somewhere" for key, value in keys.items() if value == "???"]


NEEDED = {data: mandatory(data) for data in options("data")}
NEEDED |= dict.fromkeys(("camvid_labels", "bccd_labels"), NEEDED["camvid"])
ON_IMAGENET = [
    *(option for option in options("experiment") if option.startswith("imagenet_")),
    "gidaris2018_rotation_imagenet",
    "noroozi2016_jigsaw",
    "doersch2015_context_prediction",
    "doersch2017_combined",
    "zhang2016_colorization",
    "pathak2016_inpainting",
    "pathak2016_features",
    "ledig2017_super_resolution",
    "alexnet_imagenet_linear",
    "resnet50_imagenet",
]
NEEDED |= dict.fromkeys(ON_IMAGENET, NEEDED["imagenet"])
NEEDED |= dict.fromkeys(
    (option for option in options("experiment") if option.startswith(("camvid_", "bccd_"))), NEEDED["camvid"]
)


@pytest.mark.parametrize(("group", "option"), every_choice())
def test_every_choice_composes_and_builds(group: str, option: str, tmp_path: Path) -> None:
    chosen = f"{group}=[{option}]" if group in LISTS else f"{group}={option}"
    added = "+" if group == "benchmark" else ""
    cfg = composed([added + chosen, *NEEDED.get(option, [])], tmp_path)
    check_types(OmegaConf.to_container(cfg))  # type: ignore[arg-type]
    if group in ("experiment", "benchmark", "budget", "common_backbone"):
        return
    if option == "wandb":
        pytest.importorskip("wandb")
    if group == "trainer":
        options = {key: value for key, value in cfg.trainer.items() if key not in OURS}
        if cfg.trainer.accelerator == "gpu" and not torch.cuda.is_available():
            with pytest.raises(RunError, match="sees no GPU"):
                check_start(cfg)
        else:
            assert isinstance(make_trainer(**options), pl.Trainer)
    elif group in LISTS:
        assert list(cfg[group]) == [option]
        assert instantiate(cfg[group])[option] is not None
    elif group == "task":
        spec = ImageSpec(3, 32, (0.5,) * 3, (0.2,) * 3, ("a", "b"), pretrain_labels=True)
        backbone = instantiate(cfg.backbone, in_channels=3)
        assert isinstance(instantiate(cfg.task, _partial_=True)(backbone, spec), PretextTask)
    elif group == "backbone":
        with torch.device("meta"):  # without values; tests/networks/test_backbones.py runs them
            assert isinstance(instantiate(cfg.backbone), torch.nn.Module)
    elif group == "optimizer":
        optimizer = instantiate(cfg.optimizer)([torch.zeros(1, requires_grad=True)])
        assert isinstance(optimizer, torch.optim.Optimizer)
    elif group == "scheduler":
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0, momentum=0.9)
        assert isinstance(instantiate(cfg.scheduler)(optimizer, 100), torch.optim.lr_scheduler.LRScheduler)
    else:
        assert instantiate(cfg[group]) is not None


def test_the_run_folder_follows_the_choices(tmp_path: Path) -> None:
    cfg = composed(["task=random", "data=fake", "backbone=nin", "name=x"], tmp_path)
    assert cfg.folder == "random/fake/nin/x"
    assert cfg.run_dir == str(tmp_path)


def test_probes_are_a_list_and_may_be_none(tmp_path: Path) -> None:
    assert list(composed(["probe=[knn]"], tmp_path).probe) == ["knn"]
    assert composed(["probe=[]"], tmp_path).probe == {}


def test_a_wrong_option_lists_the_right_ones(tmp_path: Path) -> None:
    with pytest.raises(MissingConfigException, match=r"(?s)Available options in 'task':.*rotation"):
        composed(["task=rotaton"], tmp_path)


def test_an_unknown_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigCompositionException, match=r"Could not override 'optimizer\.learning_rate'"):
        composed(["optimizer.learning_rate=1"], tmp_path)
