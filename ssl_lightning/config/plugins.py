"""Configs of installed plugin packages: `conf/` of each entry point in the group `ssl_lightning.plugins`."""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

from ssl_lightning.config.paths import conf_dir
from ssl_lightning.core.errors import RunError

GROUP = "ssl_lightning.plugins"  # of entry points; the value is a package with a folder `conf`


class PluginConfigs(SearchPathPlugin):
    """Let Hydra find the configs of plugin packages, after the ones of this project."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for package, folder in plugin_dirs().items():
            search_path.append(provider=f"plugin {package}", path=f"file://{folder}")


def use_plugins() -> None:
    """Add the configs of plugin packages to everything that Hydra composes from now on."""
    Plugins.instance().register(PluginConfigs)


def conf_dirs() -> list[Path]:
    """Return all folders of configs: the project's own, then one for each plugin package."""
    return [conf_dir(), *plugin_dirs().values()]


@cache
def plugin_dirs() -> dict[str, Path]:
    """Return the folder `conf` of each installed plugin package, by the name of the package.

    Raises:
        RunError: A package is missing, or has no folder `conf`.
    """
    return {name: _find(name) for name in sorted({point.module for point in entry_points(group=GROUP)})}


def _find(package: str) -> Path:
    """Find the configs of a package; a top-level package is not imported."""
    try:
        spec = find_spec(package)
    except ModuleNotFoundError:  # a parent of `package` is missing
        spec = None
    places = [Path(place) / "conf" for place in (spec and spec.submodule_search_locations) or ()]
    found = next((place.resolve() for place in places if place.is_dir()), None)
    if found is None:
        what = f"has no folder conf in {places[0].parent}" if places else "is not an installed package"
        raise RunError(
            f"error: the entry point {package!r} of the group {GROUP} {what}; reinstall its plugin"
        )
    return found
