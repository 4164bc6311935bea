"""The packages: those found below flowdiff/, and conf/, which is flowdiff.conf in a wheel. The rest: pyproject.toml."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["flowdiff", "flowdiff.*"]), "flowdiff.conf"])
