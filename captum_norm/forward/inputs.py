"""Which inputs does a model get, under which names, and can it take them?

A model is called with a mapping (as keywords), a tensor or a tuple (positionally).  ``check_inputs`` refuses, with the
way out, inputs that would crash deep inside the model or, on a GPU, disable the device.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from captum_norm.forward.keywords import title
from captum_norm.forward.modules import modules_within

ModelInputs = Mapping[str, Any] | Tensor | tuple[Any, ...]

# Inputs that say something *about* positions; all other tensors of two or more axes hold the positions themselves.
_ABOUT_POSITIONS = ("mask", "type_ids", "position_ids", "position", "positions", "labels", "bias")


def call_model(model: Callable[..., Any], inputs: ModelInputs) -> Any:
    """``model(**inputs)`` for a mapping, ``model(*inputs)`` for a tuple, ``model(inputs)`` for a tensor; no gradient.

    Raises:
        TypeError: if ``inputs`` is of another type, or holds float numbers where the model looks up token ids.
        ValueError: if the inputs are empty, too long, or hold ids beyond the vocabulary.

    Example:
        >>> call_model(nn.Identity(), torch.ones(1, 2))
        tensor([[1., 1.]])
    """
    check_inputs(model, inputs)
    try:
        with torch.no_grad():
            if isinstance(inputs, Mapping):
                return model(**inputs)
            return model(*inputs) if isinstance(inputs, tuple) else model(inputs)
    except IndexError as error:
        raise ValueError(
            f"{title(model)} looked up an entry that one of its tables does not have ({error}): the text is longer "
            f"than the table of positions, or a token id is beyond its vocabulary. {_described(model, inputs)}"
        ) from error
    except RuntimeError as error:
        if "'indices' to have one of the following scalar types" not in str(error):
            raise
        raise TypeError(_float_ids(model, "an input", _described(model, inputs))) from error


def named_inputs(model: Callable[..., Any], inputs: ModelInputs) -> dict[str, Any]:
    """Every input under the name the model's ``forward`` gives it.

    Example:
        >>> list(named_inputs(nn.TransformerDecoderLayer(4, nhead=1), (torch.ones(1, 1, 4), torch.ones(1, 1, 4))))
        ['tgt', 'memory']
    """
    check_model(model)
    if isinstance(inputs, Mapping):
        return dict(inputs)
    if not isinstance(inputs, Tensor | tuple):
        way = " A text goes through the tokenizer first: tokenizer(text, return_tensors='pt')."
        raise TypeError(
            f"{title(model)} cannot be called with a {type(inputs).__name__}: give a mapping (passed as keywords), "
            f"a tensor, or a tuple of tensors (passed positionally).{way if isinstance(inputs, str | list) else ''}"
        )
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    return dict(zip(_parameter_names(model, len(given)), given, strict=True))


def position_sources(named: Mapping[str, Any]) -> dict[str, Tensor]:
    """The inputs whose entries are positions: ids, vectors, pixels, but no masks, types or labels.

    A tensor with several names (query, key, value) counts once, under the first.

    Example:
        >>> list(position_sources({"input_ids": torch.ones(1, 3).long(), "attention_mask": torch.ones(1, 3)}))
        ['input_ids']
    """
    sources: dict[str, Tensor] = {}
    for name, value in named.items():
        holds = isinstance(value, Tensor) and value.ndim > 1 and value.dtype is not torch.bool
        if holds and not name.endswith(_ABOUT_POSITIONS) and not any(value is source for source in sources.values()):
            sources[name] = value
    return sources


def other_input(tensor: Tensor) -> Tensor:
    """An input of the same shape that a model can take, and that is another one: the first position everywhere."""
    if tensor.is_floating_point():
        return tensor.flip(1) * 0.5 if tensor.ndim > 1 else tensor * 0.5
    return tensor[:, :1].expand_as(tensor).contiguous() if tensor.ndim > 1 else tensor


def check_model(model: Any) -> None:
    """Refuse what is no model that can run.

    Raises:
        TypeError: for a model's name, a class in place of a model, or anything else that cannot be called.
        ValueError: for a model without numbers, on the meta device, or one that shows no operations (TorchScript).

    Example:
        >>> check_model("bert-base-uncased")
        Traceback (most recent call last):
        ...
        TypeError: the model should be a torch.nn.Module or a function, got the name 'bert-base-uncased'. Load it first,
        for example with transformers.AutoModel.from_pretrained('bert-base-uncased').
    """
    wanted = "the model should be a torch.nn.Module or a function"
    if isinstance(model, str):
        raise TypeError(
            f"{wanted}, got the name {model!r}. Load it first, for example with "
            f"transformers.AutoModel.from_pretrained({model!r})."
        )
    if isinstance(model, type):
        raise TypeError(
            f"{wanted}, got the class {model.__name__}. Make a model of it, for example with "
            f"{model.__name__}.from_pretrained(...) or {model.__name__}(...)."
        )
    if not callable(model):
        raise TypeError(f"{wanted}, got {type(model).__name__}.")
    if isinstance(model, torch.jit.ScriptModule | torch.jit.ScriptFunction):
        raise ValueError(
            f"{title(model)}: a scripted or traced model (TorchScript) runs outside Python and shows none of its "
            "operations. Give the model that it was made of, or torch.export.export(model, inputs).module()."
        )
    if isinstance(model, nn.Module):
        modules = modules_within(model)
        weights = (weight for module in modules for weight in module._parameters.values())
        # accelerate keeps weights there, too, and brings each in when its module runs
        is_empty = any(weight is not None and weight.is_meta for weight in weights)
        if is_empty and not any(hasattr(module, "_hf_hook") for module in modules):
            empty = next(name for name, weight in model.named_parameters() if weight.is_meta)
            raise ValueError(
                f"{title(model)}: its weight {empty} is on the meta device, so it has a shape and no numbers. Load the "
                "weights, for example with from_pretrained(...) outside torch.device('meta')."
            )


def check_inputs(model: Callable[..., Any], inputs: ModelInputs) -> None:
    """Refuse what the model cannot take, before it runs.

    Raises:
        TypeError: if ``inputs`` is of another type, or ids are float or a list.
        ValueError: if an input is empty or longer than the table of positions, ids are beyond the vocabulary or lack
            the axis of the batch, a mask is of another text, or there are no numbers, on the meta device.

    Example:
        >>> check_inputs(nn.Identity(), torch.ones(1, 0))
        Traceback (most recent call last):
        ...
        ValueError: Identity: input is empty, shape (1, 0): there is nothing to attend to. Give at least one token.
    """
    named = named_inputs(model, inputs)
    _check_kinds(model, named)
    for name, tensor in position_sources(named).items():
        if tensor.numel() == 0:
            raise ValueError(
                f"{title(model)}: {name} is empty, shape {tuple(tensor.shape)}: there is nothing to attend to. "
                "Give at least one token."
            )
        if name.endswith("input_ids"):
            _check_ids(model, name, tensor)


def _check_kinds(model: Callable[..., Any], named: Mapping[str, Any]) -> None:
    """Ids are tensors of (batch, token) with numbers in them, and a mask has an entry for each."""
    for name, value in named.items():
        if name.endswith(("input_ids", "attention_mask")) and isinstance(value, list):
            raise TypeError(
                f"{title(model)}: {name} is a list, but the model takes tensors. Let the tokenizer make them: "
                "tokenizer(text, return_tensors='pt')."
            )
        if isinstance(value, Tensor) and value.is_meta:
            raise ValueError(f"{title(model)}: {name} is on the meta device, so it has a shape and no numbers.")
        if name.endswith("input_ids") and isinstance(value, Tensor) and value.ndim < 2 and hasattr(model, "config"):
            raise ValueError(
                f"{title(model)}: {name} has the shape {tuple(value.shape)}, but the model takes (batch, token). For "
                f"one text add the axis of the batch: {name}[None]."
            )
    for name, ids in named.items():
        mask = named.get(name.replace("input_ids", "attention_mask")) if name.endswith("input_ids") else None
        if isinstance(ids, Tensor) and isinstance(mask, Tensor) and ids.ndim == mask.ndim == 2:
            longer = mask.shape[1] >= ids.shape[1]  # a cache may hold what the mask counts too
            if not longer or mask.shape[0] not in (1, ids.shape[0]):
                raise ValueError(
                    f"{title(model)}: {name} is (batch, token) = {tuple(ids.shape)}, but the attention mask is "
                    f"{tuple(mask.shape)}: it belongs to another text. Give what the tokenizer returned as it is."
                )


def longest_input(model: Callable[..., Any]) -> int | None:
    """The number of positions in the model's learned position table; None where it has none or none is known.

    Models that compute their positions (rotary, relative) run beyond their ``max_position_embeddings`` and have no
    such table.
    """
    config = getattr(model, "config", None)
    limit = next((getattr(config, n) for n in ("max_position_embeddings", "n_positions") if hasattr(config, n)), None)
    if not isinstance(limit, int) or not isinstance(model, nn.Module):
        return None
    named = [(name, m) for m, name in modules_within(model).items() if isinstance(m, nn.Embedding)]
    tables = [m for name, m in named if "position" in name or name == "wpe"]
    # Some tables start after the padding id (RoBERTa), some are two rows longer than the config says (BART, OPT); a
    # table of quite another size holds relative distances.
    rows = [t.num_embeddings - (0 if t.padding_idx is None else t.padding_idx + 1) for t in tables]
    rows = [r for r in rows if abs(r - limit) <= 8]
    return min([limit, *rows]) if rows else None


def _check_ids(model: Callable[..., Any], name: str, ids: Tensor) -> None:
    if ids.is_floating_point() or ids.is_complex():
        raise TypeError(_float_ids(model, name, f"{name} is {ids.dtype}, shape {tuple(ids.shape)}."))
    longest = longest_input(model)
    if longest is not None and ids.shape[-1] > longest:
        raise ValueError(
            f"{title(model)}: {name} has {ids.shape[-1]} tokens, but its table of positions ends at {longest}. "
            f"Shorten the text, or let the tokenizer cut it: truncation=True, max_length={longest}."
        )
    rows = _vocabulary(model)
    if rows is not None and not 0 <= int(ids.min()) <= int(ids.max()) < rows:
        raise ValueError(
            f"{title(model)}: {name} holds ids from {int(ids.min())} to {int(ids.max())}, but the model knows "
            f"0 to {rows - 1}. Does the tokenizer belong to this model?"
        )


def _vocabulary(model: Callable[..., Any]) -> int | None:
    try:
        table = getattr(model, "get_input_embeddings", lambda: None)()
    except (AttributeError, NotImplementedError):  # raised by models without one table for their input
        return None
    return table.num_embeddings if isinstance(table, nn.Embedding) else None


def _parameter_names(model: Callable[..., Any], count: int) -> list[str]:
    """The first ``count`` positional parameters of the model; numbered names where it takes ``*args``."""
    function = model.forward if isinstance(model, nn.Module) else model
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [p.name for p in inspect.signature(function).parameters.values() if p.kind in positional][:count]
    return names + [f"input {i}" for i in range(len(names), count)]


def _float_ids(model: Callable[..., Any], name: str, found: str) -> str:
    return (
        f"{title(model)} looks up token ids (long), but {name} holds float numbers. {found} Give the tokenizer's ids "
        "unchanged; vectors go in as inputs_embeds=, and gradient methods through HFForward(model, mode='gate')."
    )


def _described(model: Callable[..., Any], inputs: ModelInputs) -> str:
    shapes = [
        f"{name} {value.dtype} {tuple(value.shape)}"
        for name, value in named_inputs(model, inputs).items()
        if isinstance(value, Tensor)
    ]
    return f"It was given {', '.join(shapes)}."
