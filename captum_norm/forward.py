"""How does every Captum method, ours and Captum's own, call the same Hugging Face model in the same way?

    HFForward(model, mode)(inputs, *additional_forward_args) -> (batch, class)

Captum passes tensors by position and reads ``target`` along the last axis of a 2-d result; Hugging Face models take
keywords, return outputs by name, and often one row per token.  ``HFForward`` stands between the two.  ``mode`` says
what ``inputs`` is, and so what the attributions are attributions to:

- ``"ids"``: the model's own input, token ids (batch, sequence) long or pixels;
- ``"gate"``: ones (batch, sequence); each multiplies its token's embedding, so that 1 is the token and 0 its absence;
- ``"embeds"``: the embeddings themselves, (batch, sequence, model), passed as ``inputs_embeds``.

The gate is applied to the output of the module that looks the ids up while the model runs, wherever it sits and
whatever it scales: the model still receives ids, so positions counted from padding, end-of-sequence markers and scaled
embeddings stay as they are, which ``inputs_embeds`` does not promise.

Axes: b batch, s sequence, c class, d model.
"""

from __future__ import annotations

import difflib
import inspect
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import get_ident
from typing import Any, Literal, SupportsIndex, cast

import torch
from torch import Tensor, nn

from captum_norm.inputs import check_inputs

Mode = Literal["ids", "embeds", "gate"]
Position = SupportsIndex | Sequence[int] | Tensor | Literal["mean"] | None

_MODES = ("ids", "embeds", "gate")
_OUTPUTS = ("logits", "start_logits", "last_hidden_state")
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class HFForward(nn.Module):
    """A Hugging Face model as the forward function of any Captum method.

    The result is (batch, class), so that ``target`` is always the class.  Where the model returns a row per token,
    (batch, sequence, class), the row ``position`` is taken; for encoder-decoders these are the decoder's rows.  Where
    it returns (batch, class), the model has pooled already, and ``position`` only tells attention methods which row it
    pools.

    ``position=None`` is the last real token of a causal model, the first of any other, and the last real decoder row
    of an encoder-decoder.  Real tokens are those where the ``attention_mask`` (``decoder_attention_mask``) that the
    model receives is 1; without a mask all are.  *Causal* is measured, not looked up: at the first call that needs to
    know, the gradient of the first real row with respect to all later embeddings is taken once, from one example; the
    model is causal if it is exactly zero.

    Captum repeats a batch, in place (NoiseTunnel) or end to end (IntegratedGradients), or cuts it (Lime).  Positions
    given one per example can follow each of these if they are passed along as the last of
    ``additional_forward_args``, which is what :meth:`inputs` does; otherwise they follow where the rows of the masks
    and ids show how the batch was repeated, and are refused where they do not.

    The gate uses a forward hook that lives for the length of the call and acts on the calling thread only, so threads
    may share a model.

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
        if mode not in _MODES:
            raise ValueError(f"HFForward: mode should be one of {', '.join(map(repr, _MODES))}, got {mode!r}.")
        _check_kind(position)
        self.model = model
        self.training = model.training
        self.mode: Mode = mode
        self.position: Position = position
        self.fixed = fixed
        self.embedding = _module_name(_core(model), embedding)
        self._default_names = names is None
        self._causal: bool | None = None
        known = _keywords(_core(model))
        self._main = known[0] if known else getattr(_core(model), "main_input_name", "input_ids")
        self.names = self._names_by_default(known) if names is None else _checked_names(names)
        self._check_keywords(known)

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
        output = self._run(keywords, gate)
        return self._row(output, keywords, position)

    def inputs(self, encoding: Mapping[str, Any]) -> dict[str, Any]:
        """What to pass to ``attribute`` for a tokenizer's or processor's encoding, in this mode.

        For encoder-decoders that generate, ``decoder_input_ids`` is made from ``labels`` where the encoding has them,
        and is the start token alone where it has neither: then the first generated token is explained.

        Args:
            encoding: ``tokenizer(texts, return_tensors="pt", padding=True)``, or a mapping like it.  Entries the
                model does not take (offsets, word ids) are left out.

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
        given = self._tensors(encoding)
        if self._encoder_decoder and given.get("decoder_input_ids") is None:
            given.update(self._decoder_start(given))
        main = given[self._main]
        extras: list[Any] = [given.get(name) for name in self.names]
        if isinstance(self.position, Sequence | Tensor) and not isinstance(self.position, str):
            extras.append(torch.as_tensor(self.position, device=main.device))
        while extras and extras[-1] is None:
            del extras[-1]
        keywords = {**self.fixed, **{n: given[n] for n in self.names if n in given}, self._main: main}
        if self._main.endswith("input_ids"):
            self._check_ids(main)
        check_inputs(_core(self.model), keywords)
        if self.mode == "gate":
            return {"inputs": self._gate_of_ones(keywords), "additional_forward_args": (main, *extras)}
        if self.mode == "embeds":
            main = self._embeds(keywords)
        return {"inputs": main, "additional_forward_args": tuple(extras) or None}

    # -- from Captum's positional arguments to the model's keywords --

    @property
    def _input_name(self) -> str:
        return "inputs_embeds" if self.mode == "embeds" else self._main

    @property
    def _encoder_decoder(self) -> bool:
        core = _core(self.model)
        config = getattr(core, "config", None)
        return bool(getattr(config, "is_encoder_decoder", False)) and "decoder_input_ids" in _keywords(core)

    def _names_by_default(self, known: Sequence[str]) -> tuple[str, ...]:
        names: tuple[str, ...] = ("attention_mask", "token_type_ids")
        if self._encoder_decoder:
            names = ("attention_mask", "decoder_input_ids", "decoder_attention_mask")
        return tuple(name for name in names if name in known and name not in self.fixed)

    def _check_keywords(self, known: Sequence[str]) -> None:
        """Refuse names that the model would drop without a word."""
        title = type(_core(self.model)).__name__
        if self.mode == "embeds" and "inputs_embeds" not in known:
            raise ValueError(f"HFForward: {title} takes no inputs_embeds, as mode='embeds' needs. Use mode='gate'.")
        twice = [name for name in self.names if name in self.fixed or name == self._input_name]
        if twice:
            raise ValueError(f"HFForward: {twice[0]} is given twice, in names and as the input or a fixed argument.")
        anywhere = {name for kind in {type(m): m for m in self.model.modules()}.values() for name in _keywords(kind)}
        unknown = [name for name in self.names if name not in anywhere]
        if unknown:
            raise ValueError(
                f"HFForward: names has {unknown[0]!r}, but {title} takes {', '.join(known)}."
                f"{_suggestion(unknown[0], known)}"
            )
        own = ("mode", "position", "names", "embedding")
        for name in self.fixed.keys() - anywhere:
            if not _takes_any_keyword(_core(self.model)) or _suggestion(name, own):
                raise ValueError(
                    f"HFForward got the argument {name!r}, which neither it nor {title} takes."
                    f"{_suggestion(name, (*own, *known))}"
                )

    def _split_gate(self, gate: Tensor, extras: tuple[Any, ...]) -> tuple[Tensor, Tensor, tuple[Any, ...]]:
        if not extras or not isinstance(extras[0], Tensor):
            raise ValueError(
                f"HFForward(mode='gate') takes the gate (ones) as inputs and {self._main} as the first of "
                "additional_forward_args: use method.attribute(**forward.inputs(encoding))."
            )
        return gate, extras[0], extras[1:]

    def _named(self, extras: tuple[Any, ...]) -> tuple[dict[str, Any], Any]:
        """The extras under their names, and the position."""
        names = self._order(extras)
        last = extras[len(names) :]
        if len(last) > 1 or (last and isinstance(last[0], Tensor) and last[0].ndim > 1):
            raise ValueError(
                f"HFForward got {len(extras)} extras but knows {len(names)}: {', '.join(names) or 'none'}. "
                "Name all of them: HFForward(model, names=(...))."
            )
        given = {name: value for name, value in zip(names, extras, strict=False) if value is not None}
        return {**self.fixed, **given}, last[0] if last and last[0] is not None else self.position

    def _order(self, extras: tuple[Any, ...]) -> tuple[str, ...]:
        """``names``, with the decoder's ids first where the first extra can only be these."""
        decoder = "decoder_input_ids"
        if not (self._default_names and decoder in self.names[1:] and extras and isinstance(extras[0], Tensor)):
            return self.names
        first = extras[0]
        if first.is_floating_point() or first.dtype is torch.bool or bool(((first == 0) | (first == 1)).all()):
            return self.names
        return (decoder, *(name for name in self.names if name != decoder))

    def _check(self, keywords: Mapping[str, Any], gate: Tensor | None) -> None:
        main = keywords[self._input_name]
        if not isinstance(main, Tensor):
            raise TypeError(f"HFForward: {self._input_name} should be a tensor, got {type(main).__name__}.")
        if self.mode == "embeds" and not (main.is_floating_point() and main.ndim > 2):
            raise ValueError(
                f"HFForward(mode='embeds') takes (batch, sequence, model) float embeddings, got {main.dtype} of shape "
                f"{tuple(main.shape)}. forward.inputs(encoding) makes them; token ids go in with mode='ids' or 'gate'."
            )
        if self._input_name.endswith("input_ids"):
            self._check_ids(main)
            self._check_gate(gate, main)
        check_inputs(_core(self.model), keywords)

    def _check_ids(self, ids: Tensor) -> None:
        if ids.is_floating_point() or ids.is_complex() or ids.dtype is torch.bool:
            raise TypeError(
                f"HFForward(mode={self.mode!r}) got {self._main} as {ids.dtype}, but token ids are integers. Methods "
                "that add noise to the inputs or scale them need mode='gate' or mode='embeds' and the arguments of "
                "forward.inputs(encoding)."
            )
        if ids.ndim < 2:
            raise ValueError(
                f"HFForward: {self._main} should be (batch, sequence), got shape {tuple(ids.shape)}. Ask the tokenizer "
                "for return_tensors='pt', or add the batch axis: ids[None]."
            )

    def _check_gate(self, gate: Tensor | None, ids: Tensor) -> None:
        if gate is None:
            return
        if not gate.is_floating_point():
            raise TypeError(
                f"HFForward(mode='gate') got inputs of {gate.dtype}, but a gate is float, 1.0 at every token; the ids "
                "are the first of additional_forward_args. forward.inputs(encoding) makes both."
            )
        if gate.shape != ids.shape:
            raise ValueError(f"HFForward: the gate is {tuple(gate.shape)}, but {self._main} is {tuple(ids.shape)}.")

    # -- the model --

    def _run(self, keywords: dict[str, Any], gate: Tensor | None = None) -> Tensor:
        if gate is None:
            return self._output(keywords)
        with self._at_embedding(keywords[self._main], lambda module, output: _gated(module, output, gate)):
            return self._output(keywords)

    def _output(self, keywords: dict[str, Any]) -> Tensor:
        """The tensor that ``target`` is an index of, as the model returns it."""
        output = self.model(**keywords)
        if isinstance(output, Mapping):
            found = [output[name] for name in (*_OUTPUTS, *output) if isinstance(output.get(name), Tensor)]
        else:
            found = [item for item in (output if isinstance(output, tuple | list) else [output]) if _is_result(item)]
        if not found:
            raise ValueError(
                f"HFForward: {type(_core(self.model)).__name__} returned {type(output).__name__} without a tensor to "
                "explain."
            )
        return cast(Tensor, found[0])

    @contextmanager
    def _at_embedding(self, main: Tensor, change: Callable[[nn.Module, Tensor], Tensor]) -> Iterator[None]:
        """While this lasts, ``change`` the output of the module that embeds ``main`` for this thread."""
        thread, changed, handles = get_ident(), list[nn.Module](), []
        modules = self._embedding_modules()

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            if get_ident() != thread or not self._embeds_main(module, main, (*args, *kwargs.values()), bool(changed)):
                return None
            changed.append(module)
            if isinstance(output, tuple):
                return (change(module, output[0]), *output[1:])
            return change(module, output)

        try:
            for module in modules:
                handles.append(module.register_forward_hook(hook, with_kwargs=True))
            yield
        finally:
            for handle in handles:
                handle.remove()
        if not changed:
            raise ValueError(self._no_embedding())

    def _embedding_modules(self) -> list[nn.Module]:
        """The modules that may embed the main input; which of them do shows while the model runs."""
        core = _core(self.model)
        if self.embedding is not None:
            return [core.get_submodule(self.embedding)]
        declared = _declared_embeddings(core)
        if self._main.endswith("input_ids"):
            # A wrapper around one table (adapters) counts as a whole; one around several adds more than the ids.
            declared = [m for m in declared if sum(isinstance(part, nn.Embedding) for part in m.modules()) <= 1]
            inside = {part for m in declared for part in m.modules() if part is not m}
            tables = [m for m in core.modules() if isinstance(m, nn.Embedding)]
            return [m for m in dict.fromkeys([*declared, *tables]) if m not in inside]
        if self._main == "pixel_values":
            patches = [m for m in declared if not isinstance(m, nn.Embedding)]
            return patches or [m for m in core.modules() if isinstance(m, _CONVOLUTIONS)]
        return []

    def _embeds_main(self, module: nn.Module, main: Tensor, arguments: tuple[Any, ...], before: bool) -> bool:
        """Whether a module called with these arguments embeds ``main``."""
        if self.embedding is not None:
            return not before
        given = next((item for item in arguments if isinstance(item, Tensor)), None)
        if given is None or given.is_floating_point() != main.is_floating_point():
            return False
        if given.data_ptr() == main.data_ptr() and given.numel() == main.numel():
            return True
        # A copy of the input: cast pixels, or ids with image places filled in, as the model's own embedding takes them.
        declared = main.is_floating_point() or any(module is m for m in _declared_embeddings(_core(self.model)))
        return not before and declared and given.shape == main.shape

    def _no_embedding(self) -> str:
        title = type(_core(self.model)).__name__
        return (
            f"HFForward(mode='gate'): no module of {title} was seen to embed {self._main}: there is nothing to gate. "
            "Name the module whose output is one vector per token or patch: "
            "HFForward(model, mode='gate', embedding='encoder.embed')."
        )

    # -- the row that is explained --

    def _row(self, output: Tensor, keywords: dict[str, Any], position: Any) -> Tensor:
        if output.ndim != 3:
            self._check_range(position, keywords)
            return output
        batch, length = output.shape[:2]
        real = self._real(keywords, batch, length, needed=position is None or position == "mean")
        if isinstance(position, str):
            _check_kind(position)
            share = real_tokens(real, batch, length).to(output)
            return torch.einsum("bsc,bs->bc", output, share) / share.sum(1, keepdim=True)
        causal = position is None and self._explains_last(keywords, real, batch, length)
        rows = resolve_position(self._followed(position, keywords, batch), real, batch, length, causal)
        return output[torch.arange(batch, device=output.device), rows.to(output.device)]

    def _check_range(self, position: Any, keywords: Mapping[str, Any]) -> None:
        """A model that pools needs no row, but a position beyond its text is a mistake all the same."""
        _check_kind(position)
        if position is None or isinstance(position, str) or self._encoder_decoder:
            return
        if self._input_name.endswith(("input_ids", "inputs_embeds")):
            main = keywords[self._input_name]
            _in_range(_as_indices(position), main.shape[1] if self.mode == "embeds" else main.shape[-1])

    def _real(self, keywords: Mapping[str, Any], batch: int, length: int, needed: bool) -> Tensor | None:
        """(batch, length) bool, True at real rows of the output; None where all are."""
        mask = keywords.get("decoder_attention_mask" if self._encoder_decoder else "attention_mask")
        if self._encoder_decoder and mask is None and keywords.get("decoder_input_ids") is None:
            mask = keywords.get("attention_mask")  # the decoder then reads the shifted input, padding included
        if mask is None or bool((mask == 1).all()):
            return None
        if mask.ndim == 2 and mask.shape[-1] == length and batch % len(mask) == 0:
            return real_tokens(mask, batch, length)
        if needed:
            raise ValueError(
                f"HFForward: the output has {length} rows for each of {batch} examples, but the attention mask is "
                f"{tuple(mask.shape)}, so real tokens cannot be told from padding. Give position as an index."
            )
        return None

    def _explains_last(self, keywords: dict[str, Any], real: Tensor | None, batch: int, length: int) -> bool:
        if self._encoder_decoder:
            return True
        if not self._input_name.endswith(("input_ids", "inputs_embeds")):
            return False
        if self._causal is None:
            mask = real_tokens(real, batch, length)
            if int(mask.sum(1).max()) < 2:
                return False  # one real token is both the first and the last
            # A thread of its own: what surrounds this call (a recording, no_grad, autocast) must not see this one.
            with ThreadPoolExecutor(1) as pool:
                self._causal = pool.submit(self._measure_causal, keywords, mask).result()
        return self._causal

    def _measure_causal(self, keywords: dict[str, Any], real: Tensor) -> bool:
        """Whether the first real row of the output does not depend on any later embedding."""
        keywords, real = _one_example(keywords, real)
        leaves: list[Tensor] = []

        def leaf(module: nn.Module, output: Tensor) -> Tensor:
            leaves.append(output.detach().clone().requires_grad_())
            return leaves[-1].clone()  # some models add to their embeddings in place

        with _private_randomness(self.model):
            if self.mode == "embeds":
                output = self._output({**keywords, "inputs_embeds": leaf(self.model, keywords["inputs_embeds"])})
            else:
                with self._at_embedding(keywords[self._main], leaf):
                    output = self._output(keywords)
        examples, first = torch.arange(len(real), device=real.device), real.int().argmax(1)
        row = output[examples, first]
        # A random direction: the plain sum of a layer-normed row is constant, and its gradient zero for every model.
        direction = torch.randn(row.shape, generator=torch.Generator().manual_seed(0)).to(row)
        gradients = torch.autograd.grad((row * direction).sum(), leaves, allow_unused=True)
        later = torch.arange(real.shape[1], device=real.device) > first[:, None]
        return not any(bool(g[later.to(g.device)].any()) for g in gradients if g is not None)

    def _followed(self, position: Any, keywords: Mapping[str, Any], batch: int) -> Any:
        """Positions given one per example, repeated as Captum repeated the examples."""
        indices = None if position is None else _as_indices(position)
        if indices is None or indices.ndim == 0 or len(indices) == batch or batch % len(indices):
            return position
        times = batch // len(indices)
        in_place, end_to_end = indices.repeat_interleave(times), indices.repeat(times)
        if torch.equal(in_place, end_to_end):
            return in_place
        rows = [v for v in keywords.values() if isinstance(v, Tensor) and v.ndim > 1 and len(v) == batch]
        rows = [v for v in rows if not v.is_floating_point()]
        is_in_place = bool(rows) and all(_same(v.reshape(-1, times, *v.shape[1:]), axis=1) for v in rows)
        is_end_to_end = bool(rows) and all(_same(v.reshape(times, -1, *v.shape[1:]), axis=0) for v in rows)
        if is_in_place != is_end_to_end:
            return in_place if is_in_place else end_to_end
        raise ValueError(
            f"HFForward: position has {len(indices)} entries for a batch of {batch}, and the ids and masks do not show "
            "how the batch was repeated. Pass the positions along, as forward.inputs(encoding) does: as a tensor, the "
            "last of additional_forward_args."
        )

    # -- from an encoding to Captum's arguments --

    def _tensors(self, encoding: Mapping[str, Any]) -> dict[str, Tensor]:
        """The entries of an encoding that the model takes, on its device."""
        if not isinstance(encoding, Mapping):
            raise TypeError(
                f"HFForward.inputs takes a tokenizer's encoding, got {type(encoding).__name__}. Tokenize first: "
                "forward.inputs(tokenizer(text, return_tensors='pt'))."
            )
        known = _keywords(_core(self.model))
        wanted = {self._main, *self.names, "labels"}
        present = [name for name, value in encoding.items() if value is not None]
        extra = [name for name in present if name in known and name not in wanted | self.fixed.keys()]
        if extra and self._default_names:
            raise ValueError(
                f"HFForward.inputs: the encoding has {extra[0]}, which the model takes but names does not pass on. "
                f"HFForward(model, names={(*self.names, extra[0])})."
            )
        if self._main not in present:
            raise ValueError(
                f"HFForward.inputs: the model needs {self._main}, the encoding has {', '.join(present) or 'nothing'}."
            )
        device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        return {k: _as_tensor(k, encoding[k], device) for k in wanted if k in present}

    def _decoder_start(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        core: Any = _core(self.model)
        if "decoder_input_ids" not in self.names or not getattr(core, "can_generate", lambda: False)():
            return {}  # passed otherwise, or made by the model from its own input
        if "labels" in given and hasattr(core, "prepare_decoder_input_ids_from_labels"):
            return {"decoder_input_ids": core.prepare_decoder_input_ids_from_labels(labels=given["labels"])}
        configs = [getattr(core, name, None) for name in ("config", "generation_config")]
        start = [getattr(c, "decoder_start_token_id", None) for c in configs]
        found = [s for s in start if s is not None]
        if not found:
            raise ValueError(
                f"HFForward.inputs: {type(core).__name__} needs decoder_input_ids and its config has no "
                "decoder_start_token_id. Add decoder_input_ids to the encoding."
            )
        main = given[self._main]
        return {"decoder_input_ids": torch.full((len(main), 1), found[0], device=main.device)}

    def _gate_of_ones(self, keywords: dict[str, Any]) -> Tensor:
        main: Tensor = keywords[self._main]
        if self._main.endswith("input_ids"):
            return torch.ones(main.shape, dtype=_dtype(self.model), device=main.device)

        def stop(module: nn.Module, output: Tensor) -> Tensor:
            raise _EmbeddingSeen(torch.ones(len(output), _gate_shape(module, output).numel() // len(output)).to(output))

        try:
            with torch.no_grad(), self._at_embedding(main, stop):
                self._output(keywords)
        except _EmbeddingSeen as seen:
            return seen.gate
        raise ValueError(self._no_embedding())

    def _embeds(self, keywords: dict[str, Any]) -> Tensor:
        """The embeddings of the ids, where the model makes the same of them as of the ids."""
        core: Any = _core(self.model)
        ids = keywords[self._main]
        others = {name: value for name, value in keywords.items() if name != self._main}
        with torch.no_grad():
            embeds = core.get_input_embeddings()(ids)
            with _private_randomness(self.model):
                expected = self._output(keywords)
            try:
                with _private_randomness(self.model):
                    found = self._output({**others, "inputs_embeds": embeds})
            except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
                raise ValueError(
                    f"HFForward(mode='embeds'): {type(core).__name__} does not run from inputs_embeds here ({error}). "
                    "Use mode='gate', which changes nothing but the embeddings."
                ) from error
        difference, size = self._difference(expected, found, keywords)
        if not difference <= torch.finfo(expected.dtype).eps ** 0.75 * size:
            raise ValueError(
                f"HFForward(mode='embeds'): {type(core).__name__} returns something else for inputs_embeds than for "
                f"the ids they come from: off by {difference:.2g}, where the largest output is {size:.2g}. It derives "
                "positions from the padding, scales its embeddings, or reads the ids in another way. Use mode='gate', "
                "which is exact here."
            )
        return embeds.detach()

    def _difference(self, expected: Tensor, found: Tensor, keywords: Mapping[str, Any]) -> tuple[float, float]:
        """The largest difference and the largest size, over rows that are no padding."""
        if expected.ndim == 3 and expected.shape == found.shape:
            real = self._real(keywords, expected.shape[0], expected.shape[1], needed=False)
            if real is not None:
                expected, found = expected[real], found[real]
        if expected.shape != found.shape:
            return float("inf"), float(expected.abs().max())
        return float((expected - found).abs().max()), float(expected.abs().max())


def real_tokens(mask: Tensor | None, batch: int, length: int) -> Tensor:
    """Which tokens are no padding.

    Args:
        mask: attention mask, 1 at real tokens, (batch, sequence), or (n, sequence) for n examples that were repeated
            in place; None where all are real.
        batch: number of examples.
        length: number of tokens.

    Returns:
        (batch, length) bool.

    Raises:
        ValueError: if the mask has other sizes, or an example has no real token.

    Example:
        >>> real_tokens(torch.tensor([[0, 1, 1]]), batch=1, length=3)
        tensor([[False,  True,  True]])
    """
    if mask is None:
        return torch.ones(batch, length, dtype=torch.bool)
    if mask.ndim != 2 or mask.shape[1] != length or batch % len(mask):
        raise ValueError(
            f"the attention mask should be (batch, sequence) = ({batch}, {length}), got shape {tuple(mask.shape)}."
        )
    real = (mask > 0).repeat_interleave(batch // len(mask), dim=0)
    empty = (~real.any(1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"the attention mask of example {empty[0]} marks no token as real: nothing to explain.")
    return real


def resolve_position(position: Position, mask: Tensor | None, batch: int, length: int, causal: bool) -> Tensor:
    """The row that ``position`` means in each example.

    Args:
        position: None, an index (negative from the end), or one index per example.  Fewer than the batch, if the batch
            is a multiple of them, are repeated in place, as NoiseTunnel and sensitivity_max repeat the examples.
        mask: attention mask, 1 at real tokens, (batch, sequence); None where all are real.
        batch: number of examples.
        length: number of rows to choose from.
        causal: whether None means the last real token, instead of the first.

    Returns:
        (batch,) long, 0 to length - 1.

    Raises:
        TypeError: if ``position`` is of another kind; bool is.
        ValueError: if it has another length, is out of range, or is padding.

    Example:
        >>> resolve_position(None, torch.tensor([[1, 1, 1], [1, 1, 0]]), batch=2, length=3, causal=True)
        tensor([2, 1])
        >>> resolve_position(-1, None, batch=2, length=3, causal=True)
        tensor([2, 2])
    """
    real = real_tokens(mask, batch, length)
    if position is None:
        return length - 1 - real.flip(1).int().argmax(1) if causal else real.int().argmax(1)
    indices = _as_indices(position).to(real.device)
    if indices.ndim and batch % len(indices):
        raise ValueError(
            f"position has {len(indices)} entries for a batch of {batch}: give one index, or one per example."
        )
    indices = indices.expand(batch) if not indices.ndim else indices.repeat_interleave(batch // len(indices))
    rows = _in_range(indices, length)
    padding = (~real.gather(1, rows[:, None])[:, 0]).nonzero().flatten().tolist()
    if padding:
        example = padding[0]
        raise ValueError(
            f"position {int(rows[example])} of example {example} is padding: its real tokens are "
            f"{real[example].nonzero().flatten().tolist()}. Give one position per example, or none for the token that "
            "the kind of model suggests."
        )
    return rows


class _EmbeddingSeen(Exception):  # noqa: N818  (stops a forward whose embedding is all that was asked for)
    """The model has embedded its input."""

    def __init__(self, gate: Tensor) -> None:
        super().__init__("the model has embedded its input")
        self.gate = gate


def _check_kind(position: Any) -> None:
    if isinstance(position, str):
        if position != "mean":
            raise ValueError(
                f'HFForward: position should be None, an index, one index per example or "mean", got {position!r}.'
            )
    elif position is not None:
        _as_indices(position)


def _as_indices(position: Any) -> Tensor:
    """A 0-d or 1-d long tensor on the CPU."""
    wrong = TypeError(
        f'position should be None, an integer, one integer per example or "mean", got {position!r}. '
        "(The class to explain is target.)"
    )
    if isinstance(position, Tensor):
        indices = position.detach().cpu()
        if indices.is_floating_point() or indices.is_complex() or indices.dtype is torch.bool:
            raise wrong
    else:
        entries: Any = position if isinstance(position, Sequence) else getattr(position, "tolist", lambda: position)()
        several = isinstance(entries, Sequence) and not isinstance(entries, str)
        if any(isinstance(entry, bool) for entry in (entries if several else [entries])):
            raise wrong
        try:
            indices = torch.tensor([operator.index(e) for e in entries] if several else operator.index(entries))
        except TypeError:
            raise wrong from None
    if indices.ndim > 1 or indices.numel() == 0:
        raise wrong
    return indices.long()


def _in_range(indices: Tensor, length: int) -> Tensor:
    wrong = indices[(indices < -length) | (indices >= length)].flatten().tolist()
    if wrong:
        raise ValueError(
            f"position {wrong[0]} is out of range: there are {length} positions, 0 to {length - 1} "
            f"(or -1 to {-length} from the end)."
        )
    return indices % length


def _core(model: nn.Module) -> nn.Module:
    """The model inside torch's wrappers, which hide its config and signature."""
    while isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        model = model.module
    return model


def _keywords(model: nn.Module) -> list[str]:
    """The names ``forward`` takes, or, where it takes ``*args, **kwargs`` only, those of the first module inside."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    for module in model.modules():
        names = [p.name for p in inspect.signature(module.forward).parameters.values() if p.kind in named]
        if names:
            return names
    return []


def _takes_any_keyword(model: nn.Module) -> bool:
    kinds = [p.kind for p in inspect.signature(model.forward).parameters.values()]
    return inspect.Parameter.VAR_KEYWORD in kinds


def _suggestion(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def _checked_names(names: Sequence[str]) -> tuple[str, ...]:
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"HFForward: names should be keywords in a sequence, ('attention_mask',), got {names!r}.")
    if len(set(names)) < len(names):
        raise ValueError(f"HFForward: names has an entry twice: {tuple(names)}.")
    return tuple(names)


def _module_name(model: nn.Module, embedding: str | nn.Module | None) -> str | None:
    """The name of a module given by itself or by name: what survives a copy of the model."""
    named = dict(model.named_modules())
    if isinstance(embedding, nn.Module):
        found = [name for name, module in named.items() if module is embedding]
        if not found:
            raise ValueError(f"HFForward: embedding is a {type(embedding).__name__} that is no part of the model.")
        return found[0]
    if embedding is not None and embedding not in named:
        raise ValueError(
            f"HFForward: the model has no module {embedding!r} for embedding=.{_suggestion(embedding, list(named))}"
        )
    return embedding


def _declared_embeddings(model: nn.Module) -> list[nn.Module]:
    """What the model and the models inside it call their input embeddings."""
    found = []
    for module in model.modules():
        declare: Any = getattr(module, "get_input_embeddings", None)
        if declare is not None:
            try:
                found.append(declare())
            except (AttributeError, NotImplementedError):  # models without one say so in either way
                continue
    return list(dict.fromkeys(m for m in found if isinstance(m, nn.Module)))


def _gate_shape(module: nn.Module, output: Tensor) -> torch.Size:
    """The shape in which one number per token or patch multiplies an embedding module's output."""
    if isinstance(module, _CONVOLUTIONS):
        return torch.Size((output.shape[0], 1, *output.shape[2:]))
    if output.ndim == 3:
        return torch.Size((*output.shape[:2], 1))
    raise ValueError(
        f"HFForward(mode='gate'): {type(module).__name__} returns shape {tuple(output.shape)}, in which tokens or "
        "patches cannot be told from channels. Name the convolution or table inside it with embedding=."
    )


def _gated(module: nn.Module, output: Tensor, gate: Tensor) -> Tensor:
    shape = _gate_shape(module, output)
    if shape.numel() != gate.numel():
        raise ValueError(
            f"HFForward: the gate is {tuple(gate.shape)}, but the embedding has {len(output)} examples of "
            f"{shape.numel() // len(output)} tokens or patches. forward.inputs(encoding) makes a gate that fits."
        )
    # Multiplied in the wider dtype of the two, rounded once.
    return (output * gate.reshape(shape)).to(output.dtype)


def _is_result(item: Any) -> bool:
    """A tensor with a batch axis: the loss that labels put first has none."""
    return isinstance(item, Tensor) and item.ndim > 0


def _one_example(keywords: dict[str, Any], real: Tensor) -> tuple[dict[str, Any], Tensor]:
    """The example with the most real tokens; all of them where some input is not one per example."""
    batch, longest = len(real), int(real.sum(1).argmax())
    tensors = {name: value for name, value in keywords.items() if isinstance(value, Tensor)}
    cut = slice(longest, longest + 1) if all(v.ndim and len(v) == batch for v in tensors.values()) else slice(None)
    return {**keywords, **{name: value[cut].clone() for name, value in tensors.items()}}, real[cut].clone()


def _same(rows: Tensor, axis: int) -> bool:
    return torch.equal(rows, rows.narrow(axis, 0, 1).expand_as(rows))


@contextmanager
def _private_randomness(model: nn.Module) -> Iterator[None]:
    """The same random numbers for each run inside, and the generators as they were afterwards."""
    devices = {p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(sorted(devices)):
        torch.manual_seed(0)
        yield


def _dtype(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.get_default_dtype())


def _as_tensor(name: str, value: Any, device: torch.device) -> Tensor:
    try:
        return torch.as_tensor(value, device=device)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"HFForward.inputs: {name} cannot be a tensor ({error}). Texts of different lengths need padding: "
            "tokenizer(texts, return_tensors='pt', padding=True)."
        ) from error
