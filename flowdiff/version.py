"""The version, said once: pyproject.toml reads it here, and a checkout that isn't installed has it too."""

__version__ = "0.1.0"
