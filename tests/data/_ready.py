"""Data modules on folders of a test, ready to give batches."""

from pathlib import Path
from typing import Any, TypeVar

from ssl_lightning.data.base import PairedDataModule

T = TypeVar("T", bound=PairedDataModule)


def ready(kind: type[T], tree: Path, **options: Any) -> T:
    """Set up a data set of a folder, decoded in this process, with a cache beside the folder."""
    made = kind(dir=str(tree), root=str(tree.parent / "cache"), num_workers=0, **options)
    made.prepare_data()
    made.setup()
    return made
