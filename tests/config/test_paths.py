"""Location of the configs in an installed package and in a checkout."""

from pathlib import Path

import pytest

from ssl_lightning.config import paths


def test_configs_of_the_package_come_before_the_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (paths.conf_dir() / "train.yaml").is_file()
    monkeypatch.setattr(paths, "PACKAGE", tmp_path / "ssl_lightning")
    assert paths.conf_dir() == tmp_path / "conf"
    (tmp_path / "ssl_lightning" / "conf").mkdir(parents=True)
    assert paths.conf_dir() == tmp_path / "ssl_lightning" / "conf"
