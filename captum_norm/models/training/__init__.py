"""What trained the shipped models; loading and using them needs none of it, and the installed package leaves it out.

Run it from the root of a checkout:

    python -m captum_norm.models.training.sentiment --help
    python -m captum_norm.models.training.translation --help

``captum_norm/models/MODEL_CARD.md`` has the lines that made the shipped files, and says which data they need.
"""

import platform
from importlib.metadata import version


def versions() -> dict[str, str]:
    """The versions that a description of trained weights states."""
    packages = ("captum-norm", "torch", "transformers", "tokenizers")
    return {"python": platform.python_version(), **{package: version(package) for package in packages}}
