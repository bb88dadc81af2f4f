"""What kind of token is each one, and how much does each kind receive?

``token_classes`` names each token: a special token by its own name ("[CLS]", "[SEP]"), "punctuation" or "other".
``class_shares`` says what part of a query's attention each class receives:

    share(c) = mean over real queries i of  (sum over j in c of m_ij) / (sum over all real j of m_ij)

for a map m of weights or norms (Kobayashi et al. 2020, https://arxiv.org/abs/2004.10102, who report the sum in the
numerator alone).  ``class_means`` averages a score per token over each class.

Axes: b batch, h head, q query, k key (one per token), c class.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor


def token_classes(
    tokens: Tensor | Sequence[int] | Sequence[str], tokenizer: Any, *, punctuation: Collection[str] | None = None
) -> list[str]:
    """What each token is: a special token by its own name ("[CLS]", "</s>", "[PAD]" ...), "punctuation" or "other".

    "[UNK]" and "[MASK]" are special tokens, too.

    Args:
        tokens: the ids of one example, (token,), or its tokens as strings.
        tokenizer: the transformers tokenizer that made them.
        punctuation: the marks that count as punctuation, for example ``{".", ","}`` as in the paper; by default every
            token made only of Unicode's punctuation and ASCII symbols.

    Returns:
        One name per token.
    """
    strings = _token_strings(tokens, tokenizer)
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    special = {*tokenizer.all_special_tokens, *(token.content for token in added if token.special)}

    def name(token: str) -> str:
        if token in special:
            return token
        # The characters of a token are those without the vocabulary's marks.
        continues = token.startswith("##") and len(token) > 2
        surface = token[2:] if continues else str(tokenizer.convert_tokens_to_string([token])).strip()
        if punctuation is not None:
            return "punctuation" if surface in punctuation else "other"
        return "punctuation" if surface and all(map(is_punctuation, surface)) else "other"

    names = {token: name(token) for token in set(strings)}
    return [names[token] for token in strings]


def class_shares(
    scores: Tensor,
    classes: Sequence[str] | Sequence[Sequence[str]],
    *,
    key_mask: Tensor | None = None,
    query_mask: Tensor | None = None,
    normalize: bool = True,
) -> dict[str, Tensor]:
    """The share of a query's attention that each class of tokens receives, averaged over the real queries.

    Args:
        scores: a map of weights or norms, (batch, query, key) or (batch, head, query, key), non-negative.
        classes: the class of each key, one list per example; for a batch of one the list itself.
        key_mask: (batch, key) bool, True at real tokens; None where all are.
        query_mask: (batch, query) bool, the same for the queries; for self-attention the same mask.  Give both or
            neither.
        normalize: True divides by the query's sum over all real keys, so that shares add up to 1; False gives the sum
            over the class itself, as Kobayashi et al. (2020) report it.

    Returns:
        For every class that occurs, (batch,) or (batch, head), dimensionless if normalised, else in the map's unit; 0
        for an example in which the class does not occur.  Special tokens first, then "punctuation", then "other".

    Raises:
        ValueError: if shapes disagree, if a score between real tokens is negative, infinite or NaN, or if all scores of
            a real query are zero, so that it has no shares.

    Example:
        >>> weights = torch.tensor([[[0.6, 0.3, 0.1], [0.2, 0.7, 0.1]]])
        >>> class_shares(weights, ["[CLS]", "other", "[SEP]"])
        {'[CLS]': tensor([0.4000]), '[SEP]': tensor([0.1000]), 'other': tensor([0.5000])}
    """
    if scores.ndim not in (3, 4):
        raise ValueError(
            "class_shares: scores should be (batch, query, key) or (batch, head, query, key), "
            f"got shape {tuple(scores.shape)}."
        )
    if (key_mask is None) != (query_mask is None):
        raise ValueError("class_shares: give key_mask and query_mask or neither; for self-attention they are the same.")
    batch, query, key = scores.shape[0], scores.shape[-2], scores.shape[-1]
    names, one_hot = class_columns("class_shares", classes, batch, key, scores)
    keys = _mask("class_shares", "key_mask", key_mask, batch, key, scores)
    queries = _mask("class_shares", "query_mask", query_mask, batch, query, scores)
    if not queries.any(-1).all():
        raise ValueError("class_shares: query_mask leaves an example without a real query.")
    pairs = queries[:, :, None] & keys[:, None, :]
    if scores.ndim == 4:
        pairs, queries, one_hot = pairs[:, None], queries[:, None], one_hot[:, None]
    real = _finite("class_shares", torch.where(pairs, scores, 0.0))
    if (real < 0).any():
        raise ValueError("class_shares: scores hold negative numbers; shares are of weights or norms.")
    received = real @ one_hot.to(real.dtype)  # (batch, [head,] query, class)
    if normalize:
        received = shares_of_sums(received, queries)
    means = received.sum(-2) / queries.sum(-1)[..., None]
    return {name: means[..., column] for column, name in enumerate(names)}


def shares_of_sums(received: Tensor, queries: Tensor, first: int = 0) -> Tensor:
    """What each class of keys receives of a query as a share of all, (batch, [head,] query, class).

    Args:
        received: the sums over the keys of each class, of the same shape, 0 for queries that are not real.
        queries: (batch, [1,] query) bool, which are real.
        first: the number of the first query, for errors.

    Raises:
        ValueError: if a real query gives nothing to any key.
    """
    total = received.sum(-1)
    if (queries & (total == 0)).any():
        where = [int(i) for i in (queries & (total == 0)).nonzero()[0]]
        raise ValueError(
            f"class_shares: example {where[0]}, query {first + where[-1]} gives nothing to any token, so it has no "
            "shares; leave it out with query_mask, or ask for the sums with normalize=False."
        )
    return received / torch.where(queries, total, 1.0)[..., None]


def class_means(
    scores: Tensor, classes: Sequence[str] | Sequence[Sequence[str]], *, key_mask: Tensor | None = None
) -> dict[str, Tensor]:
    """The mean of a score per token, such as ||f(x)||, over the tokens of each class.

    Args:
        scores: (batch, key) or (batch, head, key).
        classes: the class of each key, as in ``class_shares``.
        key_mask: (batch, key) bool, True at real tokens; None where all are.

    Returns:
        For every class that occurs, (example,) or (example, head) in the unit of ``scores``: the mean in each example
        that has a token of the class, in order.

    Example:
        >>> class_means(torch.tensor([[1.0, 4.0, 6.0]]), ["[CLS]", "other", "other"])
        {'[CLS]': tensor([1.]), 'other': tensor([5.])}
    """
    if scores.ndim not in (2, 3):
        raise ValueError(
            f"class_means: scores should be (batch, key) or (batch, head, key), got shape {tuple(scores.shape)}."
        )
    batch, key = scores.shape[0], scores.shape[-1]
    names, one_hot = class_columns("class_means", classes, batch, key, scores)
    keys = _mask("class_means", "key_mask", key_mask, batch, key, scores)
    one_hot = one_hot & keys[:, :, None]
    real = torch.where(keys if scores.ndim == 2 else keys[:, None], scores, 0.0)
    means = means_of_columns(real[:, None] if scores.ndim == 2 else real, names, one_hot)
    return {name: mean[:, 0] if scores.ndim == 2 else mean for name, mean in means.items()}


def means_of_columns(scores: Tensor, names: Sequence[str], one_hot: Tensor) -> dict[str, Tensor]:
    """The mean of scores (batch, head, key) over the keys of each class, (example, head), as ``class_means`` gives it.

    Args:
        scores: 0 at padding.
        names: the classes.
        one_hot: which keys are real tokens of each, (batch, key, class) bool.
    """
    real, counts = _finite("class_means", scores), one_hot.sum(1)  # (batch, class)
    sums = real @ one_hot.to(real.dtype)  # (batch, head, class)
    means = {}
    for column, name in enumerate(names):
        has = counts[:, column] > 0
        if has.any():
            means[name] = sums[has, :, column] / counts[has, column, None]
    return means


def is_punctuation(character: str) -> bool:
    """Unicode's punctuation and the ASCII symbols, which Unicode files under mathematics, currency or accents."""
    ascii_symbol = character.isascii() and character.isprintable() and not character.isalnum() and character != " "
    return ascii_symbol or unicodedata.category(character).startswith("P")


def _token_strings(tokens: Tensor | Sequence[int] | Sequence[str], tokenizer: Any) -> list[str]:
    if isinstance(tokens, Tensor):
        if tokens.ndim != 1 or tokens.is_floating_point():
            raise ValueError(
                "token_classes: tokens should be the ids of one example, (token,), got "
                f"{tokens.dtype} of shape {tuple(tokens.shape)}."
            )
        tokens = tokens.tolist()
    listed: list[Any] = list(tokens)
    if isinstance(tokens, str) or not any(all(isinstance(token, kind) for token in listed) for kind in (str, int)):
        raise TypeError("token_classes: tokens should be a list of ids or a list of token strings, of one example.")
    if listed and isinstance(listed[0], int):
        return list(tokenizer.convert_ids_to_tokens(listed))
    return listed


def class_columns(
    caller: str, classes: Sequence[str] | Sequence[Sequence[str]], batch: int, key: int, like: Tensor
) -> tuple[list[str], Tensor]:
    """The names of the classes, and (batch, key, class) bool."""
    rows: list[list[str]]
    rows = [list(classes)] if classes and isinstance(classes[0], str) else [list(row) for row in classes]  # type: ignore[arg-type]
    if len(rows) != batch:
        raise ValueError(f"{caller}: batch is {batch} in scores but classes has {len(rows)} lists, one per example.")
    for example, row in enumerate(rows):
        if len(row) != key:
            raise ValueError(f"{caller}: key is {key} in scores but {len(row)} in classes of example {example}.")
    seen = dict.fromkeys(name for row in rows for name in row)
    names = [name for name in seen if name not in ("punctuation", "other")]
    names += [name for name in ("punctuation", "other") if name in seen]
    number = {name: column for column, name in enumerate(names)}
    columns = torch.tensor([[number[name] for name in row] for row in rows], dtype=torch.long, device=like.device)
    return names, columns[..., None] == torch.arange(len(names), device=like.device)


def _mask(caller: str, name: str, mask: Tensor | None, batch: int, length: int, like: Tensor) -> Tensor:
    if mask is None:
        return torch.ones(batch, length, dtype=torch.bool, device=like.device)
    if mask.shape != (batch, length) or mask.dtype != torch.bool:
        raise ValueError(
            f"{caller}: {name} should be bool of shape {(batch, length)}, got {mask.dtype} of {tuple(mask.shape)}."
        )
    return mask.to(like.device)


def _finite(caller: str, scores: Tensor) -> Tensor:
    if not torch.isfinite(scores).all():
        raise ValueError(f"{caller}: scores hold NaN or infinity at real tokens.")
    # Half precision would lose the sums over long sequences.
    return scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
