"""Cache folder of data sets and of results that are computed once."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root(root: str | os.PathLike[str] | None = None) -> Path:
    """Return the cache folder.

    Args:
        root: The folder itself; None takes `$SSL_LIGHTNING_DATA`, else `$XDG_CACHE_HOME/ssl_lightning`, else
            `~/.cache/ssl_lightning`.
    """
    if root:
        return Path(root).expanduser().absolute()
    if env := os.environ.get("SSL_LIGHTNING_DATA"):
        return Path(env).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().absolute() / "ssl_lightning"
