"""How does every Captum method, ours and Captum's own, call the same Hugging Face model in the same way?

    HFForward(model, mode)(inputs, *additional_forward_args) -> (batch, class)

Captum passes tensors by position and reads ``target`` along the last axis of a 2-d result; Hugging Face models take
keywords, return outputs by name, and often one row per token.  ``HFForward`` stands between the two.  ``mode`` says
what ``inputs`` is, and so what the attributions are attributions to:

- ``"ids"``: the model's own input, token ids (batch, sequence) long or pixels;
- ``"gate"``: ones (batch, sequence); each multiplies its token's embedding, so that 1 is the token and 0 its absence;
- ``"embeds"``: the embeddings themselves, (batch, sequence, model), passed as ``inputs_embeds``.

The gate multiplies the output of the module that looks the ids up while the model runs.  The model still receives ids,
so positions counted from padding, end-of-sequence markers and scaled embeddings stay as they are; ``inputs_embeds``
does not promise that.

Axes: b batch, s sequence, c class, d model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from captum_norm.forward.causal import is_causal
from captum_norm.forward.embedding import EmbeddingSites, gate_of_ones, gated, module_name
from captum_norm.forward.embeds import embeddings_of
from captum_norm.forward.encoding import decoder_start, positional, tensors_of
from captum_norm.forward.extras import checked_names, default_names, in_order
from captum_norm.forward.inputs import check_inputs
from captum_norm.forward.keywords import check_keywords, keywords_of, title, unwrapped
from captum_norm.forward.modes import MODES, Mode, check_embeds, check_gate, check_ids
from captum_norm.forward.one_mapping import by_keywords
from captum_norm.forward.outputs import output_tensor
from captum_norm.forward.position import (
    Position,
    as_indices,
    check_kind,
    followed,
    in_range,
    real_tokens,
    resolve_position,
)


class HFForward(nn.Module):
    """A Hugging Face model as the forward function of any Captum method.

    The result is (batch, class), so that ``target`` is always the class.  Where the model returns a row per token,
    (batch, sequence, class), the row ``position`` is taken; for encoder-decoders these are the decoder's rows.  Where
    it returns (batch, class), the model has pooled already, and ``position`` only tells attention methods which row it
    pools.

    ``position=None`` is the last real token of a causal model, the first of any other, and the last real decoder row
    of an encoder-decoder.  Real tokens are those where the ``attention_mask`` (``decoder_attention_mask``) that the
    model receives is 1; without a mask all are.  *Causal* is measured: the first call that needs to
    know takes the gradient of the first real row with respect to all later embeddings, from one example.  The model is
    causal if this gradient is exactly zero.

    Captum repeats a batch, in place (NoiseTunnel) or end to end (IntegratedGradients), or cuts it (Lime).  One
    position per example follows each of these as the last of ``additional_forward_args``, where :meth:`inputs` puts it.
    Elsewhere, positions follow if the rows of masks and ids show how Captum repeated the batch, and are refused if not.

    The gate is a forward hook that exists during the call and acts on the calling thread only, so threads may share a
    model.

    Args:
        model: a Hugging Face model, or any module with a ``forward`` of the same kind.
        mode: what ``inputs`` is: ``"ids"``, ``"gate"`` or ``"embeds"``, see above.
        position: whose row is explained: None, an index into the rows (negative from the end), one index per example,
            or ``"mean"`` over the real tokens.
        names: the keywords under which positional extras reach the model.  By default ``attention_mask`` and
            ``token_type_ids``, for encoder-decoders ``attention_mask, decoder_input_ids, decoder_attention_mask``, as
            far as the model takes them.  An encoder-decoder called as ``(input_ids, decoder_input_ids, ...)`` is
            understood where the second tensor cannot be an attention mask.
        embedding: for ``"gate"``, the module whose output is gated, or its name, where it cannot be found by itself.
        **fixed: keyword arguments passed to the model in every call.

    Raises:
        TypeError: if ``model`` is no module, ``position`` is none of the above, or, in a call, ids are float.
        ValueError: if an argument has an unknown value, or, in a call, the inputs do not fit the model or each other.

    Example:
        >>> from transformers import BertConfig, BertForTokenClassification
        >>> config = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, num_labels=3)
        >>> forward = HFForward(BertForTokenClassification(config).eval(), mode="gate", position=2)
        >>> arguments = forward.inputs({"input_ids": torch.tensor([[1, 2, 3, 4]])})
        >>> arguments["inputs"]
        tensor([[1., 1., 1., 1.]])
        >>> forward(arguments["inputs"], *arguments["additional_forward_args"]).shape
        torch.Size([1, 3])
    """

    def __init__(
        self,
        model: nn.Module,
        mode: Mode = "ids",
        position: Position = None,
        names: Sequence[str] | None = None,
        *,
        embedding: str | nn.Module | None = None,
        **fixed: Any,
    ) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise TypeError(f"HFForward: model should be a torch.nn.Module, got {type(model).__name__}.")
        if mode not in MODES:
            raise ValueError(f"HFForward: mode should be one of {', '.join(map(repr, MODES))}, got {mode!r}.")
        check_kind(position)
        self.model = model = by_keywords(model)
        self.training = model.training
        self.mode: Mode = mode
        self.position: Position = position
        self.fixed = fixed
        self.embedding = module_name(model, embedding)
        self._main = next(iter(keywords_of(model)), "input_ids")
        self._default_names = names is None
        self.names = default_names(model, fixed, self._encoder_decoder) if names is None else checked_names(names)
        self._check_arguments()
        self._causal: bool | None = None

    def extra_repr(self) -> str:
        """What is printed beside the model."""
        return f"mode={self.mode!r}, position={self.position!r}, names={self.names!r}"

    def forward(self, inputs: Tensor, *additional_forward_args: Any) -> Tensor:
        """Run the model as Captum calls it.

        Args:
            inputs: (batch, sequence) ids or gate, (batch, sequence, model) embeddings, or the pixels in mode ``"ids"``.
            *additional_forward_args: in mode ``"gate"`` first the ids (or pixels); then the extras in the order of
                ``names``, None for those left out; then, optionally, the position.

        Returns:
            (batch, class), in the model's dtype.
        """
        gate = None
        if self.mode == "gate":
            gate, inputs, additional_forward_args = self._split_gate(inputs, additional_forward_args)
        keywords, position = self._named(additional_forward_args)
        keywords[self._input_name] = inputs
        self._check(keywords, gate)
        return self._row(self._run(keywords, gate), keywords, position)

    def inputs(self, encoding: Mapping[str, Any], position: Tensor | None = None) -> dict[str, Any]:
        """What to pass to ``attribute`` for a tokenizer's or processor's encoding, in this mode.

        For encoder-decoders that generate, ``decoder_input_ids`` is made from ``labels`` where the encoding has them,
        and is the start token alone where it has neither: then the first generated token is explained.

        Args:
            encoding: ``tokenizer(texts, return_tensors="pt", padding=True)``, or a mapping like it.  Entries the
                model does not take (offsets, word ids) are left out.
            position: one index per example, (batch,), in place of the forward's own position.

        Returns:
            ``inputs`` and ``additional_forward_args``, on the model's device:
            ``method.attribute(**forward.inputs(encoding), target=1)``.

        Raises:
            TypeError: if ``encoding`` is no mapping.
            ValueError: if the model's input is missing or ragged; in mode ``"embeds"`` also if the model gives another
                result for ``inputs_embeds`` than for the ids.

        Example:
            >>> from transformers import BertConfig, BertForSequenceClassification
            >>> config = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
            >>> encoding = {"input_ids": [[1, 2, 3, 0]], "attention_mask": [[1, 1, 1, 0]]}
            >>> HFForward(BertForSequenceClassification(config)).inputs(encoding)
            {'inputs': tensor([[1, 2, 3, 0]]), 'additional_forward_args': (tensor([[1, 1, 1, 0]]),)}
        """
        given = tensors_of(encoding, self.model, self._main, self.names, self.fixed, refuses=self._default_names)
        main = given[self._main]
        if self._reads_ids:
            check_ids(main, self._main, self.mode)
        if "decoder_input_ids" in self.names and "decoder_input_ids" not in given:
            given |= decoder_start(given, unwrapped(self.model), main)
        keywords = {**self.fixed, **{name: given[name] for name in self.names if name in given}, self._main: main}
        check_inputs(unwrapped(self.model), keywords)
        extras = positional(given, self.names, self.position if position is None else position, main)
        if self.mode == "gate":
            return {"inputs": self._gate_of_ones(keywords), "additional_forward_args": (main, *extras)}
        inputs = self._embeds(keywords) if self.mode == "embeds" else main
        return {"inputs": inputs, "additional_forward_args": extras or None}

    # -- from Captum's positional arguments to the model's keywords --

    @property
    def _input_name(self) -> str:
        return "inputs_embeds" if self.mode == "embeds" else self._main

    @property
    def _reads_ids(self) -> bool:
        return self._main.endswith("input_ids")

    @property
    def _encoder_decoder(self) -> bool:
        config = getattr(unwrapped(self.model), "config", None)
        return bool(getattr(config, "is_encoder_decoder", False)) and "decoder_input_ids" in keywords_of(self.model)

    @property
    def _sites(self) -> EmbeddingSites:
        return EmbeddingSites(self.model, self._main, self.embedding)

    def _check_arguments(self) -> None:
        if self.mode == "embeds" and "inputs_embeds" not in keywords_of(self.model):
            raise ValueError(
                f"HFForward: {title(self.model)} takes no inputs_embeds, as mode='embeds' needs. Use mode='gate'."
            )
        for name in (*self.names, *self.fixed):
            if name == self._input_name or (name in self.names and name in self.fixed):
                raise ValueError(
                    f"HFForward: {name} is given twice: {self._input_name} is the input, names are {self.names} and "
                    f"fixed arguments {tuple(self.fixed)}."
                )
        check_keywords(self.model, self.names, self.fixed, own=("mode", "position", "names", "embedding"))

    def _split_gate(self, gate: Tensor, extras: tuple[Any, ...]) -> tuple[Tensor, Tensor, tuple[Any, ...]]:
        if not extras or not isinstance(extras[0], Tensor):
            raise ValueError(
                f"HFForward(mode='gate') takes the gate (ones) as inputs and {self._main} as the first of "
                "additional_forward_args: use method.attribute(**forward.inputs(encoding))."
            )
        return gate, extras[0], extras[1:]

    def _named(self, extras: tuple[Any, ...]) -> tuple[dict[str, Any], Any]:
        """The extras under their names, and the position."""
        names = in_order(self.names, extras) if self._default_names else self.names
        last = extras[len(names) :]
        if len(last) > 1 or (last and isinstance(last[0], Tensor) and last[0].ndim > 1):
            raise ValueError(
                f"HFForward got {len(extras)} extras but knows {len(names)}: {', '.join(names) or 'none'}. "
                "Name all of them: HFForward(model, names=(...))."
            )
        given = {name: value for name, value in zip(names, extras, strict=False) if value is not None}
        return {**self.fixed, **given}, last[0] if last and last[0] is not None else self.position

    def _check(self, keywords: Mapping[str, Any], gate: Tensor | None) -> None:
        main = keywords[self._input_name]
        if self.mode == "embeds":
            check_embeds(main, unwrapped(self.model))
        elif self._reads_ids:
            check_ids(main, self._main, self.mode)
        if gate is not None:
            check_gate(gate, main, self._main)
        check_inputs(unwrapped(self.model), keywords)

    # -- the model --

    def _run(self, keywords: dict[str, Any], gate: Tensor | None) -> Tensor:
        if gate is None:
            return self._output(keywords)
        main: Tensor = keywords[self._main]
        others = [value for name, value in keywords.items() if name != self._main and isinstance(value, Tensor)]
        if any(other.data_ptr() == main.data_ptr() for other in others):
            main = main.clone()  # else the decoder of an autoencoder would be gated too
        with self._sites.changed(main, gated(gate)):
            return self._output({**keywords, self._main: main})

    def _output(self, keywords: dict[str, Any]) -> Tensor:
        """The tensor that ``target`` is an index of, as the model returns it."""
        output = self.model(**keywords)
        explained = output_tensor(output, axes=1)
        if explained is None:
            raise ValueError(
                f"HFForward: {title(self.model)} returned a {type(output).__name__} without a tensor to explain."
            )
        return explained

    # -- the row that is explained --

    def _row(self, output: Tensor, keywords: dict[str, Any], position: Any) -> Tensor:
        check_kind(position)
        if output.ndim != 3:
            self._check_range(position, keywords)
            return output
        batch, length = output.shape[:2]
        self._check_rows(length, keywords, position)
        real = self._real(keywords, batch, length, needed=position is None or isinstance(position, str))
        if isinstance(position, str):
            share = real_tokens(real, batch, length).to(output)
            return torch.einsum("bsc,bs->bc", output, share) / share.sum(1, keepdim=True)
        causal = position is None and self._explains_last(keywords, real_tokens(real, batch, length))
        position = followed(position, batch, self._repeated(keywords, batch))
        rows = resolve_position(position, real, batch, length, causal).to(output.device)
        return output[torch.arange(batch, device=output.device), rows]

    def _check_rows(self, length: int, keywords: Mapping[str, Any], position: Any) -> None:
        """Virtual tokens or a picture's have rows, too: which of them a position counts is not known."""
        main = keywords[self._input_name]
        tokens = main.shape[1] if self.mode == "embeds" else main.shape[-1]
        known = isinstance(position, int) and not 0 <= position < tokens
        if self._reads_ids and not self._encoder_decoder and length > tokens and not known:
            raise ValueError(
                f"HFForward: the output has {length} rows for {tokens} tokens: which row position={position!r} means "
                "is not known (virtual tokens, or those of a picture, have rows, too). Give position counted from the "
                "end, -1 for the last row, or a function that returns the rows of the tokens alone."
            )

    def _check_range(self, position: Any, keywords: Mapping[str, Any]) -> None:
        """A model that pools needs no row, but a position beyond its text is a mistake all the same."""
        if position is None or isinstance(position, str) or self._encoder_decoder or not self._reads_ids:
            return
        main = keywords[self._input_name]
        in_range(as_indices(position), main.shape[1] if self.mode == "embeds" else main.shape[-1])

    def _real(self, keywords: Mapping[str, Any], batch: int, length: int, needed: bool) -> Tensor | None:
        """(batch, length) bool, True at real rows of the output; None where all are."""
        mask = keywords.get("decoder_attention_mask" if self._encoder_decoder else "attention_mask")
        if self._encoder_decoder and mask is None and "decoder_input_ids" not in keywords:
            mask = keywords.get("attention_mask")  # the decoder then reads the input shifted, padding included
        if not isinstance(mask, Tensor) or bool((mask == 1).all()):
            return None
        if mask.ndim == 2 and mask.shape[-1] == length and batch % len(mask) == 0:
            return real_tokens(mask, batch, length)
        if needed:
            raise ValueError(
                f"HFForward: the output has {length} rows for each of {batch} examples, but the attention mask is "
                f"{tuple(mask.shape)}, so real tokens cannot be told from padding. Give position as an index."
            )
        return None

    def _explains_last(self, keywords: dict[str, Any], real: Tensor) -> bool:
        """Whether ``position=None`` is the last real row, not the first."""
        if self._encoder_decoder or not self._reads_ids:
            return self._encoder_decoder
        if int(real.sum(1).max()) < 2:
            return False  # then the last is the first
        if self._causal is None:
            self._causal = is_causal(self._output, keywords, self._input_name, self._sites, real)
        return self._causal

    def _repeated(self, keywords: Mapping[str, Any], batch: int) -> list[Tensor]:
        """What Captum repeats with the batch and, but for the input itself, leaves unchanged."""
        tensors = [v for name, v in keywords.items() if isinstance(v, Tensor) and name != "inputs_embeds"]
        return [tensor for tensor in tensors if tensor.ndim > 0 and len(tensor) == batch]

    # -- the input of a mode, from the model's own --

    def _gate_of_ones(self, keywords: dict[str, Any]) -> Tensor:
        main: Tensor = keywords[self._main]
        if not self._reads_ids:
            return gate_of_ones(self._sites, main, lambda: self._output(keywords))
        floats = (p.dtype for p in self.model.parameters() if p.is_floating_point())
        return torch.ones(main.shape, dtype=next(floats, torch.get_default_dtype()), device=main.device)

    def _embeds(self, keywords: dict[str, Any]) -> Tensor:
        def real(rows: Tensor) -> Tensor | None:
            return self._real(keywords, rows.shape[0], rows.shape[1], needed=False)

        return embeddings_of(self.model, self._main, keywords, self._output, real)
