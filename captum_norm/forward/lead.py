"""How far is one class ahead of another?  A forward whose outputs are all taken less that of a foil."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from captum_norm.forward.hugging_face import HFForward


class Lead(HFForward):
    """`HFForward` for the question why this class, and not that one: output c is the lead of c over the foil.

    A method that explains class ``target`` of it explains the difference of two logits; softmax over it is what it was.

    Args:
        forward: what runs the model.
        foil: the class that others are compared with.

    Example:
        >>> import torch
        >>> from captum_norm.models import load_sentiment
        >>> model, tokenizer = load_sentiment()
        >>> forward, ids = HFForward(model), tokenizer("A warm film.", return_tensors="pt").input_ids
        >>> logits = forward(ids)
        >>> bool(Lead(forward, foil=0)(ids)[0, 1] == logits[0, 1] - logits[0, 0])
        True
    """

    def __init__(self, forward: HFForward, foil: int) -> None:
        names = None if forward._default_names else forward.names
        settings: dict[str, Any] = {"position": forward.position, "names": names, "embedding": forward.embedding}
        super().__init__(forward.model, forward.mode, **settings, **forward.fixed)
        self.foil = int(foil)

    def forward(self, inputs: Tensor, *additional_forward_args: Any) -> Tensor:
        """As `HFForward.forward`, less the foil's output."""
        output = super().forward(inputs, *additional_forward_args)
        return output - output[:, self.foil : self.foil + 1]
