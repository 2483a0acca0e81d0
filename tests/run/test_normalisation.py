"""The note on pixels of another mean and deviation."""

from dataclasses import replace
from pathlib import Path

from ssl_lightning.artifacts.weights import save_backbone
from ssl_lightning.core.image_spec import ImageSpec
from ssl_lightning.networks.convnet import ConvNet
from ssl_lightning.run.normalisation import changed_normalisation
from ssl_lightning.tasks.rotation import Rotation

SPEC = ImageSpec(3, 16, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))


def test_another_mean_than_in_the_run_is_told(tmp_path: Path) -> None:
    backbone = ConvNet(widths=(4, 8), strides=(2, 2))
    run, new = tmp_path / "run", tmp_path / "new"
    run.mkdir()
    task = Rotation(backbone, SPEC)
    config = {"_target_": "ssl_lightning.networks.convnet.ConvNet", "widths": [4, 8], "strides": [2, 2]}
    save_backbone(run, backbone, {"backbone": config, "input": task.input_config()})
    other = Rotation(backbone, replace(SPEC, mean=(0.1, 0.5, 0.6)))
    for folder, weights in ((run, None), (new, str(run)), (new, str(run / "backbone.safetensors"))):
        assert changed_normalisation(task, folder, weights) == ""
        told = changed_normalisation(other, folder, weights)
        assert "mean [0.1,0.5,0.6]" in told
        assert told.endswith("data.mean=[0.4,0.5,0.6] data.std=[0.2,0.25,0.3]")
    assert changed_normalisation(other, new, None) == ""
    assert changed_normalisation(other, new, str(new / "resnet18.pth")) == ""
    (run / "backbone.json").write_text("{")
    assert changed_normalisation(other, run, None) == ""
