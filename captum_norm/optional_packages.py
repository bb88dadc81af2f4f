"""The packages of the extra ``study``: imported when they are needed, missed with the way out."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def required(module: str, caller: str) -> Any:
    """A module of a package that ``pip install "captum-norm[study]"`` brings along.

    Raises:
        ImportError: if the package is not installed.

    Example:
        >>> required("json", "this page").dumps([1])
        '[1]'
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise ImportError(
            f'{caller} needs {package}, which is not installed. Install it with: pip install "captum-norm[study]"'
        ) from error
