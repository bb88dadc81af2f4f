"""All proofs of one model and one input, and the verdict."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm  # type: ignore[import-untyped]

from captum_norm.capture import AttentionRecord, InexactCaptureError, recording
from captum_norm.forward.inputs import ModelInputs, call_model, named_inputs, position_sources
from captum_norm.forward.one_mapping import by_keywords
from captum_norm.forward.outputs import output_tensor
from captum_norm.proof.attentions import compare_attentions
from captum_norm.proof.erasing import Finding, Prover, Status
from captum_norm.proof.tokens import Claim, change_tokens, claimed

_WEIGHTS = "weights that the model returns"


@dataclass(frozen=True)
class Proof:
    """What was proved of a model on one input.

    Attributes:
        calls: of each attention call, whether W_O lacks the record's vector where a key's values are erased.
        tokens: whether the output stays where tokens are changed that it is said not to rest on.
        weights: whether recorded weights are those that the model itself returns.
    """

    calls: tuple[Finding, ...]
    tokens: Finding
    weights: Finding

    @property
    def findings(self) -> tuple[Finding, ...]:
        return (*self.calls, self.tokens, self.weights)

    @property
    def verdict(self) -> Status:
        """Wrong if anything is; proved if every call is; else open."""
        if any(finding.status == "wrong" for finding in self.findings):
            return "wrong"
        return "proved" if self.calls and all(finding.status == "proved" for finding in self.calls) else "open"


def prove(model: nn.Module, inputs: ModelInputs, keys: int = 2, seed: int = 0, *, show_progress: bool = False) -> Proof:
    """Prove what is read of a model's attention calls, independently of how it is read.

    Args:
        model: in evaluation mode.
        inputs: what it is given, as for :func:`~captum_norm.attention_maps`.
        keys: how many keys of each call are erased, one at a time; each takes a part of a forward pass.
        seed: of the keys and tokens drawn.
        show_progress: whether to say on standard error how many calls are proved and how much longer it takes.

    Returns:
        A :class:`Proof`.  A call that is refused is open, with its refusal as the note.

    Raises:
        TypeError, ValueError: as for :func:`~captum_norm.attention_maps`.

    Example:
        >>> encoder = nn.TransformerEncoderLayer(8, nhead=2, batch_first=True).eval()
        >>> proof = prove(encoder, torch.randn(1, 3, 8))
        >>> proof.verdict, proof.tokens.status
        ('proved', 'open')
    """
    whole, generator = by_keywords(model), torch.Generator().manual_seed(seed)
    named = named_inputs(whole, inputs)
    name, ids = _text(named)
    refused: list[InexactCaptureError] = []
    sources = position_sources(named)
    with _one_path(), recording(sources=tuple(sources.values()), model=whole, on_inexact=refused.append) as records:
        output = output_tensor(call_model(whole, inputs))
        claim = "the input is no text" if ids is None or output is None else claimed(records, output, ids.shape[1])
    with _one_path():
        tokens = _tokens(whole, named, name, claim, output, generator)
        prover = Prover(whole, lambda: call_model(whole, inputs))
        bar = tqdm(records, unit="call", disable=not show_progress, leave=False)
        calls = [prover.prove(record, generator, keys) for record in bar]
    calls += [Finding(_name(error), "open", note=str(error)) for error in refused]
    return Proof(tuple(calls), tokens, _weights(whole, inputs))


def _name(error: InexactCaptureError) -> str:
    return "attention" if error.call is None else f"{error.call.name} (call {error.call.call})"


@contextlib.contextmanager
def _one_path() -> Iterator[None]:
    """torch's fused path for ``nn.TransformerEncoder`` steps aside: a recording takes the other one."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _text(named: Mapping[str, Any]) -> tuple[str, Tensor | None]:
    """The ids among the inputs, if they come first."""
    name, ids = next(iter(position_sources(named).items()), ("", None))
    return (name, ids) if ids is not None and ids.ndim == 2 and not ids.is_floating_point() else (name, None)


def _tokens(
    model: nn.Module, named: Mapping[str, Any], name: str, claim: Claim | str, output: Tensor | None,
    generator: torch.Generator,
) -> Finding:  # fmt: skip
    ids = named.get(name)
    pad = getattr(getattr(model, "config", None), "pad_token_id", None)
    if not isinstance(ids, Tensor) or output is None:
        return Finding("tokens that it does not rest on", "open", note=str(claim))
    masked = any(key.endswith("mask") for key in named)
    free = torch.ones(ids.shape[1], dtype=torch.bool) if masked or pad is None else (ids[0] != pad).cpu()

    def explain(changed: Tensor) -> Tensor:
        found = output_tensor(call_model(model, {**named, name: changed}))
        assert found is not None
        return found

    return change_tokens(ids, explain, claim, output, free, generator)


def _weights(model: nn.Module, inputs: ModelInputs) -> Finding:
    """Weights of the eager implementation of a Hugging Face model, asked for on a copy (asking leaves hooks)."""
    switch: Callable[[str], None] | None = getattr(model, "set_attn_implementation", None)
    if switch is None or not isinstance(inputs, Mapping):
        return Finding(_WEIGHTS, "open", note="the model returns none")
    eager = copy.deepcopy(model)
    returned: list[Tensor] = []
    records: list[AttentionRecord] = []
    try:
        eager.set_attn_implementation("eager")  # type: ignore[operator]
        with _one_path(), recording(records.append, model=eager, on_inexact=lambda error: None):
            output = call_model(eager, {**inputs, "output_attentions": True})
        for field in ("attentions", "encoder_attentions", "decoder_attentions", "cross_attentions"):
            returned += [tensor for tensor in getattr(output, field, None) or () if isinstance(tensor, Tensor)]
    except (TypeError, ValueError) as error:
        return Finding(_WEIGHTS, "open", note=f"the model does not return them: {str(error).splitlines()[0][:120]}")
    equal, different = compare_attentions(returned, records)
    if not equal and not different:
        return Finding(_WEIGHTS, "open", note="the model returns none")
    return Finding(_WEIGHTS, "wrong" if different else "proved", note=f"{equal} of {equal + different} equal")
