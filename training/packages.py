"""Packages that only some settings need."""

import importlib.util


def require(package: str, setting: str) -> None:
    """Check that a package is installed that a setting needs.

    Raises:
        ValueError: naming both, and how to install the package.
    """
    if importlib.util.find_spec(package) is None:
        raise ValueError(f"{setting} needs {package}, which is not installed: pip install {package}")
