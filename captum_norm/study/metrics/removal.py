"""How is a token removed from a text?  Five ways, none of them neutral, so every result names the one it used.

A copy of an example comes with ``keep``, which tokens stay.  Deleting, padding and [MASK] change the ids; the others
change the vectors that the ids are embedded to, whatever module does that.

Axes: r row (a perturbed copy of some example), s sequence, d model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from captum_norm.forward import HFForward
from captum_norm.forward.embedding import VectorChange, gated
from captum_norm.forward.keywords import title, unwrapped


@dataclass(frozen=True)
class Copies:
    """Perturbed copies, as the model is about to take them.

    Attributes:
        main: (r, s) token ids, or pixels.
        extras: the other inputs by name, (r, ...) each.
        keep: (r, s) bool, False at the tokens to remove.
        examples: (r,) long, which example of the batch each row is a copy of.
        forward: the model.
        mask_id: the id of [MASK], or None.
        memo: what need not be computed again for the next copies.
        rows: (b,) long, whose row is explained of each example; None where the forward says it.
        change: what becomes of the embedded vectors; None for nothing.
    """

    main: Tensor
    extras: dict[str, Tensor]
    keep: Tensor
    examples: Tensor
    forward: HFForward
    mask_id: int | None
    memo: dict[Any, Any]
    rows: Tensor | None = None
    change: VectorChange | None = None

    def but(self, **changed: Any) -> Copies:
        """The same with some fields changed."""
        return Copies(**{**self.__dict__, **changed})


@dataclass(frozen=True)
class Removal:
    """One way of removing tokens.

    Attributes:
        meaning: what it does, in one sentence.
        apply: does it.
    """

    meaning: str
    apply: Callable[[Copies], Copies]


def removal_named(name: str) -> Removal:
    """One of `REMOVALS`.

    Raises:
        ValueError: for another name.

    Example:
        >>> removal_named("gate").meaning
        "the token's embedding is multiplied by 0"
    """
    if name not in REMOVALS:
        raise ValueError(f"removal should be one of {', '.join(map(repr, REMOVALS))}, got {name!r}.")
    return REMOVALS[name]


def _mask(copies: Copies) -> Copies:
    _check_ids("mask", copies)
    if copies.mask_id is None:
        raise ValueError(
            f"removal='mask': no [MASK] token is known for {title(copies.forward.model)}. Give "
            "Scored(mask_id=tokenizer.mask_token_id); where the tokenizer has none, choose removal='delete', 'pad', "
            "'mean_embedding' or 'gate'."
        )
    return copies.but(main=torch.where(copies.keep, copies.main, copies.mask_id))


def _pad(copies: Copies) -> Copies:
    _check_ids("pad", copies)
    mask = _attention_mask("pad", copies)
    padding = padding_id(copies.forward.model)
    hidden = {**copies.extras, "attention_mask": mask * copies.keep}
    return copies.but(main=torch.where(copies.keep, copies.main, padding), extras=_never_empty(hidden, mask))


def _delete(copies: Copies) -> Copies:
    """The tokens that stay move together, towards the side that is not padded; the others become padding."""
    _check_ids("delete", copies)
    _check_position(copies)
    mask = _attention_mask("delete", copies)
    _check_extras(copies)
    hidden = _pad(copies)
    left = mask * copies.keep
    from_the_left = bool((mask[:, 0] > 0).all())
    # A stable sort brings what stays to one side and keeps its order.
    order = (left == 0 if from_the_left else left > 0).int().argsort(dim=1, stable=True)
    length = max(1, int((left > 0).sum(1).max()))
    order = order[:, :length] if from_the_left else order[:, -length:]
    # What stands in for a text without any token is in front already, and stays there.
    order[:, 0] = torch.where((left > 0).any(1), order[:, 0], 0)
    moved = {name: _taken(value, order) for name, value in _per_token(hidden.extras, left).items()}
    return hidden.but(
        main=hidden.main.gather(1, order), extras={**hidden.extras, **moved}, keep=moved["attention_mask"] > 0
    )


def _gate(copies: Copies) -> Copies:
    gate = copies.keep.to(next((p.dtype for p in copies.forward.model.parameters()), torch.get_default_dtype()))
    return copies.but(change=gated(gate))


def _mean_embedding(copies: Copies) -> Copies:
    _check_ids("mean_embedding", copies)

    def change(module: nn.Module, output: Tensor) -> Tensor:
        mean = copies.memo.get(("mean embedding", module))
        if mean is None:
            mean = copies.memo["mean embedding", module] = _mean_vector(module)
        return torch.where(copies.keep[..., None], output, mean.to(output))

    return copies.but(change=change)


def _mean_vector(module: nn.Module) -> Tensor:
    """The mean over the vocabulary of what a module embeds it to, (d,)."""
    tables = [part for part in module.modules() if isinstance(part, nn.Embedding)]
    if len(tables) != 1:
        raise ValueError(
            f"removal='mean_embedding': the ids are embedded by a {type(module).__name__} with {len(tables)} tables, "
            "so there is no mean vector. Choose removal='gate', 'delete' or 'pad'."
        )
    ids = torch.arange(tables[0].num_embeddings, device=tables[0].weight.device)
    # forward, not the call: this runs inside a hook of the very module.
    vectors: Tensor = module.forward(ids)
    return vectors.double().mean(0)


REMOVALS: dict[str, Removal] = {
    "delete": Removal("the token is cut out and the text closes up", _delete),
    "mask": Removal("the token's id is replaced by [MASK]", _mask),
    "pad": Removal("the token becomes padding that nothing attends to; the others keep their places", _pad),
    "mean_embedding": Removal("the token's embedding is replaced by the mean over the vocabulary", _mean_embedding),
    "gate": Removal("the token's embedding is multiplied by 0", _gate),
}
"""Every way of removing a token.  Where deleting or padding would leave nothing at all, one padding token stands in."""

# Hugging Face's names, which tell what lengths alone do not where another axis is by chance as long as the text.
_BESIDE = ("decoder_", "visual_", "pixel_", "image", "entity_", "audio_", "video_")
"""What the names of inputs begin with that lie on another sequence than the text."""
_OF_TOKENS = ("bbox", "xpath_tags_seq", "xpath_subs_seq")
"""Several numbers of each token, (r, s, n)."""
_PLACES = ("entity_position_ids", "mc_token_ids")
"""What tells where in the text something stands."""


def padding_id(model: nn.Module) -> int:
    """The id that fills up texts: the config's padding, else its end of sequence, else 0; the mask hides it anyhow."""
    config = getattr(unwrapped(model), "config", None)
    ids = [getattr(config, name, None) for name in ("pad_token_id", "eos_token_id")]
    first = [token[0] if isinstance(token, list) else token for token in ids]
    return next((int(token) for token in first if token is not None), 0)


def _never_empty(hidden: dict[str, Tensor], mask: Tensor) -> dict[str, Tensor]:
    """The extras, in which a text without any token, which has no representation, has padding that is attended to.

    It is in front, on whichever side the batch is padded: there models look that look for the last token that is no
    padding, and find none.  What the extras say of the text's first token they say of it.
    """
    left = hidden["attention_mask"]
    empty = ~(left > 0).any(1)
    first = (mask > 0).int().argmax(1, keepdim=True)
    moved = {name: value.clone() for name, value in _per_token(hidden, mask).items()}
    for value in moved.values():
        value[empty, 0] = _taken(value, first)[empty, 0]
    moved["attention_mask"][:, 0] = torch.where(empty, 1, left[:, 0])
    return {**hidden, **moved}


def _per_token(extras: dict[str, Tensor], mask: Tensor) -> dict[str, Tensor]:
    """The extras that say something of each token of the text: (r, s), or (r, s, ...) as LayoutLM's boxes (r, s, 4)."""
    return {name: value for name, value in extras.items() if _text_axes(name, value, mask) == [1]}


def _text_axes(name: str, value: Tensor, mask: Tensor) -> list[int]:
    """The axes of an extra on which the tokens of the text lie, as far as its name and its lengths tell."""
    if name.startswith(_BESIDE):
        return []
    axes = [axis for axis in range(1, value.ndim) if value.shape[axis] == mask.shape[1]]
    return axes[:1] if name in _OF_TOKENS else axes


def _taken(value: Tensor, order: Tensor) -> Tensor:
    """The entries of tokens (r, s, ...) in another order, (r, n) long."""
    return value.take_along_dim(order.view(*order.shape, *[1] * (value.ndim - 2)), dim=1)


def _attention_mask(removal: str, copies: Copies) -> Tensor:
    if "attention_mask" not in copies.forward.names:
        raise ValueError(
            f"removal={removal!r} hides tokens with attention_mask, which {title(copies.forward.model)} does not take "
            "(or HFForward(names=...) leaves out). Choose removal='mask', 'mean_embedding' or 'gate'."
        )
    mask = copies.extras.get("attention_mask")
    if mask is None:
        return torch.ones_like(copies.main)
    if mask.shape != copies.main.shape:
        raise ValueError(
            f"removal={removal!r}: attention_mask should be (batch, token) = {tuple(copies.main.shape)}, got "
            f"{tuple(mask.shape)}. Choose removal='mask', 'mean_embedding' or 'gate'."
        )
    return mask


def _check_ids(removal: str, copies: Copies) -> None:
    if copies.main.is_floating_point():
        raise ValueError(
            f"removal={removal!r} is for token ids, but {title(copies.forward.model)} takes "
            f"{copies.main.dtype} of shape {tuple(copies.main.shape)}. Choose removal='gate'."
        )


def _check_extras(copies: Copies) -> None:
    """Refuse what would still be of the text as it was: pairs of tokens, places in the text, what is held fixed."""
    choose = "Choose removal='mask', 'pad', 'mean_embedding' or 'gate'"
    length = copies.main.shape[1]
    for name, value in copies.extras.items():
        if name in _PLACES:
            raise ValueError(
                f"removal='delete' moves tokens, so {name}, which tells places in the text, would tell others in each "
                f"copy. {choose}."
            )
        axes = _text_axes(name, value, copies.main)
        if axes not in ([], [1]) and length > 1:
            raise ValueError(
                f"removal='delete' moves tokens on the second axis of what is said of each, but {name} is "
                f"{tuple(value.shape)}, as long as the text ({length}) on axes {axes}: whether these are tokens, too, "
                f"is not known. {choose}, or, if they are not, pad the texts to another length."
            )
    for name, value in copies.forward.fixed.items():
        if isinstance(value, Tensor) and length in value.shape[1:] and not name.startswith(_BESIDE):
            raise ValueError(
                f"removal='delete' moves tokens, but HFForward({name}=...) is held fixed, {tuple(value.shape)}, as "
                f"long as the text ({length}): it would be of other tokens in each copy. Give it with the inputs, "
                "named in HFForward(names=...), so that it moves along."
            )


def _check_position(copies: Copies) -> None:
    position = copies.forward.position
    if copies.rows is not None or (position is not None and position != "mean"):
        which = f"HFForward(position={position!r})" if copies.rows is None else "the row that is explained"
        raise ValueError(
            f"removal='delete' moves tokens, so {which} would be another token in each copy. Choose removal='mask', "
            "'pad', 'mean_embedding' or 'gate'."
        )
