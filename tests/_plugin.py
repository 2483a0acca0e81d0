"""Plugin package with one task and its config, as pip would install it."""

from pathlib import Path

FLIP = '''"""Tell whether an image is mirrored."""
import torch
import torch.nn.functional as F

from ssl_lightning.networks.heads import PooledClassifier
from ssl_lightning.tasks.base import Panel, PretextTask


class Flip(PretextTask):
    def __init__(self, backbone, spec, *, chance: float = 0.5, **base):
        super().__init__(backbone, spec, **base)
        self.chance = chance
        self.head = PooledClassifier(backbone, 2)

    def step(self, images, labels, stream):
        flipped = (torch.rand(len(images), generator=stream) < self.chance).to(images.device)
        x = torch.where(flipped[:, None, None, None], images.flip(-1), images)
        return {"loss": F.cross_entropy(self.head(self.backbone(self.normalise(x))), flipped.long())}

    def panel(self, images):
        return Panel(torch.stack([images, images.flip(-1)], 1), ["image", "mirrored"])
'''
CONFIG = "_target_: mytasks.flip.Flip\nchance: 0.5 # of a mirrored image\nlr_reference_batch: null\n"


def write_plugin(folder: Path, package: str = "mytasks") -> Path:
    """Write a package and the metadata of its installation; return the folder for `PYTHONPATH`."""
    configs = folder / package / "conf" / "task"
    configs.mkdir(parents=True)
    (folder / package / "__init__.py").write_text("")
    (folder / package / "flip.py").write_text(FLIP)
    (configs / "flip.yaml").write_text(CONFIG)
    write_entry_point(folder, package)
    return folder


def write_entry_point(folder: Path, package: str) -> None:
    """Write the metadata of an installed package with an entry point for plugins."""
    metadata = folder / f"{package}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[ssl_lightning.plugins]\n{package} = {package}\n")
