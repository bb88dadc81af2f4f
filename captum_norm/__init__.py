"""Norm-based attention attribution as Captum classes, for any PyTorch transformer.

How much does input j contribute to output i of attention?  Not the weight alpha_ij alone, but the length of the vector
that is actually added, ||alpha_ij f(x_j)|| with f(x) = (x W_V + b_V) W_O (Kobayashi et al. 2020,
https://arxiv.org/abs/2004.10102).

The names below are resolved on first use (PEP 562): a bare ``import captum_norm`` loads neither captum nor matplotlib
nor transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from captum_norm import attr

__version__ = "0.2.0"

if TYPE_CHECKING:
    from captum_norm import alignment, capture, exports, functional, models, study, tokens, visualization
    from captum_norm.attr import *  # noqa: F403
    from captum_norm.capture import InexactCaptureError
    from captum_norm.explanation import Explanation, explain
    from captum_norm.forward import HFForward
    from captum_norm.linear import FrozenModel
    from captum_norm.maps import AttentionMaps, attention_layers, attention_maps

_HOME = dict.fromkeys(attr.__all__, "attr") | {
    "InexactCaptureError": "capture",
    "Explanation": "explanation",
    "explain": "explanation",
    "HFForward": "forward",
    "FrozenModel": "linear",
    "AttentionMaps": "maps",
    "attention_layers": "maps",
    "attention_maps": "maps",
}
_SUBMODULES = ("alignment", "capture", "exports", "functional", "models", "study", "tokens", "visualization")

__all__ = [
    "AttentionMaps",
    "Explanation",
    "FrozenModel",
    "HFForward",
    "InexactCaptureError",
    "alignment",
    "attention_layers",
    "attention_maps",
    "capture",
    "explain",
    "exports",
    "functional",
    "models",
    "study",
    "tokens",
    "visualization",
]
__all__ += attr.__all__


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return import_module(f"captum_norm.{name}")
    if name in _HOME:
        return getattr(import_module(f"captum_norm.{_HOME[name]}"), name)
    from captum_norm.suggestions import did_you_mean

    raise AttributeError(f"module 'captum_norm' has no attribute {name!r}.{did_you_mean(name, __all__)}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
