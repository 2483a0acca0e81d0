"""Packages of the wheel, which carries the folder `conf` as `ssl_lightning/conf`."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["ssl_lightning*"]), "ssl_lightning.conf"],
    package_dir={"ssl_lightning.conf": "conf"},
)
