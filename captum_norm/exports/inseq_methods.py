"""This package's methods among those that inseq runs over each written token, and saves in its own form."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from torch import Tensor

from captum_norm.forward import HFForward


def inseq_method(method: Callable[..., Any], name: str | None = None, **arguments: Any) -> str:
    """Register a method with inseq; then ``inseq.load_model(model, name).attribute(prompt)`` runs it.

    Each written token is explained by the row that it was predicted from: of a decoder alone the scores of all tokens
    before it, of an encoder-decoder those of the source, by cross-attention.

    Args:
        method: how the method is made of a model: ``AttentionNorm``, ``ALTI``, or a function that returns one.
        name: what inseq calls it; by default the class's name in small letters, ``"attention_norm"``.
        **arguments: for ``attribute``.

    Returns:
        The name.

    Raises:
        ImportError: if inseq is not installed.
        ValueError: for a name that inseq has for a method of its own.
    """
    try:
        from inseq.attr.feat import FeatureAttribution  # type: ignore[import-not-found, unused-ignore]
        from inseq.data import FeatureAttributionStepOutput  # type: ignore[import-not-found, unused-ignore]
    except ModuleNotFoundError as error:
        raise ImportError("inseq_method needs inseq, which is not installed: pip install inseq") from error

    called = name or re.sub(r"(?<=[a-z])(?=[A-Z])", "_", getattr(method, "__name__", "method")).lower()
    taken = FeatureAttribution.available_classes().get(called)
    if taken is not None and not taken.__module__.startswith("captum_norm."):
        raise ValueError(f"inseq_method: inseq has a method {called!r} of its own; give name=, such as 'our_{called}'.")

    def load(self: Any, attribution_model: Any, **kwargs: Any) -> None:
        FeatureAttribution.__init__(self, attribution_model, **kwargs)
        self.attribute_batch_ids, self.use_predicted_target = True, False

    def step(self: Any, main: dict[str, Any], given: dict[str, Any] | None = None) -> Any:
        splits = self.attribution_model.is_encoder_decoder
        if len(main["inputs"]) > 1:
            raise ValueError(f"{called} gives the source's scores of a translation: leave attribute_target=True out.")
        scores = _scores(method, self.attribution_model.model, main["additional_forward_args"], splits, arguments)
        return FeatureAttributionStepOutput(
            source_attributions=scores if splits else None, target_attributions=None if splits else scores
        )

    body = {"method_name": called, "__init__": load, "attribute_step": step, "__module__": __name__}
    type(getattr(method, "__name__", "Method"), (FeatureAttribution,), body)
    return called


def _scores(
    method: Callable[..., Any], model: Any, given: tuple[Any, ...], splits: bool, arguments: dict[str, Any]
) -> Tensor:
    """(batch, token): of the source where there is one, else of what stands before the written token."""
    if splits:  # the decoder's embeddings come first
        _, source, written, token, _, mask, written_mask = given[:7]
        encoding = {
            "input_ids": source, "attention_mask": mask,
            "decoder_input_ids": written, "decoder_attention_mask": written_mask,
        }  # fmt: skip
    else:
        source, token, _, mask = given[:4]
        encoding = {"input_ids": source, "attention_mask": mask}
    forward = HFForward(model)
    scores: Tensor = method(forward).attribute(**forward.inputs(encoding), target=token.flatten(), **arguments)
    return scores.detach()
