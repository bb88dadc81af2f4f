"""A model or a layer as a frozen linear map of its inputs: attention weights, norms, activations, gates held fixed."""

from captum_norm.linear import rules as _rules  # noqa: F401  (fills the table)
from captum_norm.linear.contributions import (
    TokenContributions,
    contributions_to_each,
    shared_contributions,
    token_contributions,
)
from captum_norm.linear.frozen import ActivationType, Conventions, NotFrozenError, NothingMixedError, ProductType
from captum_norm.linear.model import Contributions, FrozenCheck, FrozenModel
from captum_norm.linear.readout import Readout, Seen, read_out
from captum_norm.linear.tail import Tail

__all__ = [
    "ActivationType",
    "Contributions",
    "Conventions",
    "FrozenCheck",
    "FrozenModel",
    "NotFrozenError",
    "NothingMixedError",
    "ProductType",
    "Readout",
    "Seen",
    "Tail",
    "TokenContributions",
    "contributions_to_each",
    "read_out",
    "shared_contributions",
    "token_contributions",
]
