"""Messages of a rank process."""

import warnings

import pytest

from ssl_lightning.data.io import scan
from ssl_lightning.run.__main__ import keep_quiet


def test_own_warnings_name_no_line_of_our_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        warnings, "formatwarning", lambda message, *where: f"{where[1]}:{where[2]}: {message}"
    )
    with warnings.catch_warnings():
        keep_quiet()
        assert warnings.formatwarning("odd files", UserWarning, scan.__file__, 60) == "warning: odd files\n"
        other = warnings.formatwarning("old option", UserWarning, "/lib/torch/nn.py", 7)
        assert other == "/lib/torch/nn.py:7: old option"
