"""What a prompt is made of: its token ids, and which of its tokens belong to which feature that gets a score.

Axes: t token of the prompt, f feature.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from captum_norm.attr._captum import TextTemplateInput, TextTokenInput
from captum_norm.attr._sources import SourcesType, chat_turns, is_chat, source_spans
from captum_norm.text_files import check_characters

PromptType: TypeAlias = (
    "str | Sequence[int] | Sequence[str] | Sequence[Mapping[str, Any]] | Tensor | TextTokenInput | TextTemplateInput"
)
TokensType: TypeAlias = Sequence[int] | Sequence[str] | None

_Span = tuple[int, int]


@dataclass(frozen=True)
class Prompt:
    """A prompt, and what is scored of it.

    Attributes:
        ids: (1, token) long, special tokens included.
        names: one for each feature of the result.
        shares: (feature, token), how much of a token's score a feature gets; a column sums to 1, or to 0 for a token
            that is in no feature.
        formatted: from (..., feature) to one score for each of ``names`` (Captum repeats a group's for its members).
        left_out: the tokens that are in no feature, as text, in order.
    """

    ids: Tensor
    names: list[str]
    shares: Tensor
    formatted: Callable[[Tensor], Tensor]
    left_out: tuple[str, ...]

    def scores(self, of_tokens: Tensor) -> Tensor:
        """From (target, token) to (target, name)."""
        return self.formatted(of_tokens @ self.shares.to(of_tokens).T)


def read_prompt(
    given: PromptType, tokenizer: Any, skip_tokens: TokensType = None, sources: SourcesType | None = None
) -> Prompt:
    """The prompt's ids and features.

    Args:
        given: text; ids or tokens, a list of one prompt or (token,) or (1, token); or one of Captum's text inputs.
        tokenizer: the model's tokenizer.
        skip_tokens: ids or tokens that get no score.
        sources: passages of the text, which are then the features.

    Raises:
        TypeError: for anything else.
        ValueError: if the prompt is empty, a token is not in the vocabulary, nothing is left to score, or a template
            changes its values.
    """
    skipped = known_ids("skip_tokens", skip_tokens or (), tokenizer)
    if sources is not None or is_chat(given):
        return _of_sources(given, tokenizer, skipped, "turns" if sources is None else sources)
    if isinstance(given, TextTemplateInput):
        return _of_template(given, tokenizer, skipped)
    if isinstance(given, TextTokenInput):
        ids = given.inp_tensor
        kept = torch.ones(ids.shape[1], dtype=torch.bool) if given.itp_mask is None else given.itp_mask[0].cpu()
        return _of_tokens(ids, tokenizer, kept & ~_among(ids[0], skipped), given.tokenizer.convert_ids_to_tokens)
    if isinstance(given, str):
        check_characters("the prompt", given)
        ids = tokenizer.encode(given, return_tensors="pt") if given else torch.empty(1, 0, dtype=torch.long)
    else:
        ids = known_ids("inp", cast("Sequence[int]", given), tokenizer)[None]
    return _of_tokens(ids, tokenizer, ~_among(ids[0], skipped), lambda some: token_texts(some, tokenizer))


def known_ids(what: str, given: Sequence[int] | Sequence[str] | Tensor, tokenizer: Any) -> Tensor:
    """Ids, (token,) long, of ids or of tokens as the vocabulary writes them.

    Raises:
        TypeError: if ``given`` is something else, a text among others.
        ValueError: if a token is not in the vocabulary, a number is no id, or there is more than one example.  What ids
            the model knows is looked at where they are given to it: its table may be longer than the vocabulary.
    """
    if isinstance(given, Tensor):
        given = _one_example(what, given).tolist()
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise TypeError(f"{what} should be a list of ids or of tokens, got {type(given).__name__} {given!r}.")
    ids = [_known_id(what, token, tokenizer) for token in given]
    return torch.tensor(ids, dtype=torch.long)


def token_texts(ids: list[int], tokenizer: Any) -> list[str]:
    """Each token as text, without the vocabulary's marks where it stands for characters by itself."""
    tokens = tokenizer.convert_ids_to_tokens(ids)
    # A model's table may be longer than its vocabulary; a row without a name goes by its number.
    return [
        f"<{number}>" if token is None else _text(token, tokenizer) for number, token in zip(ids, tokens, strict=True)
    ]


def _of_tokens(ids: Tensor, tokenizer: Any, kept: Tensor, names: Callable[[list[int]], list[str]]) -> Prompt:
    _refuse_empty(ids)
    if not kept.any():
        raise ValueError(f"skip_tokens leaves nothing of the prompt, {token_texts(ids[0].tolist(), tokenizer)}.")
    shares = torch.eye(ids.shape[1])[kept]
    return Prompt(ids, names(ids[0, kept].tolist()), shares, lambda scores: scores, _texts(ids[0, ~kept], tokenizer))


def _of_template(inp: TextTemplateInput, tokenizer: Any, skipped: Tensor) -> Prompt:
    """Captum's template: a feature is a value, or the values of one mask index, wherever they stand in the text."""
    text = inp.to_model_input()
    ids, offsets = _with_offsets(text, tokenizer)
    _refuse_empty(ids)
    groups = range(inp.n_features) if inp.mask is None else inp.formatted_mask
    characters = torch.zeros(inp.n_itp_features, len(text))
    for value, group in enumerate(groups):
        for start, end in _spans_of_value(inp, value, text):
            characters[group, start:end] = 1
    shares = _shares(characters, offsets, _among(ids[0], skipped))
    if not shares.any():
        raise ValueError(f"no token of the prompt {text!r} belongs to a value of the template and is not skipped.")
    left_out = _texts(ids[0, shares.sum(0) == 0], tokenizer)
    return Prompt(ids, list(map(str, inp.values)), shares, inp.format_attr, left_out)


def _of_sources(given: Any, tokenizer: Any, skipped: Tensor, sources: SourcesType) -> Prompt:
    """A feature is a passage of the text: the sum of its tokens."""
    chat = is_chat(given)
    if chat:
        render = partial(tokenizer.apply_chat_template, tokenize=False, add_generation_prompt=True)
        text = render(given)
        if isinstance(sources, str) and sources == "turns":
            sources = [*chat_turns(given, render), ...]  # the template's own marks are the rest
    elif isinstance(given, str):
        text = given
    else:
        raise TypeError(f"sources are passages of a text or a chat, but the prompt is {type(given).__name__}.")
    ids, offsets = _with_offsets(text, tokenizer, special=not chat)
    _refuse_empty(ids)
    spans = source_spans(sources, text)
    rest = [] if isinstance(sources, str) or callable(sources) or ... not in sources else [...]
    characters = torch.zeros(len(spans) + len(rest), len(text))
    for number, (start, end) in enumerate(spans):
        characters[number, start:end] = 1
    if rest:
        characters[-1] = 1 - characters.sum(0)
    shares = _shares(characters, offsets, _among(ids[0], skipped))
    names = [text[start:end].strip() for start, end in spans] + ["..."] * len(rest)
    return Prompt(ids, names, shares, lambda scores: scores, _texts(ids[0, shares.sum(0) == 0], tokenizer))


def _shares(characters: Tensor, offsets: Sequence[_Span], skipped: Tensor) -> Tensor:
    """How much of each token is each feature's, (feature, token), from its characters, (feature, character)."""
    counts = torch.stack([characters[:, start:end].sum(1) for start, end in offsets], dim=1)
    counts[:, skipped] = 0
    return counts / counts.sum(0).clamp_min(1)


def _with_offsets(text: str, tokenizer: Any, special: bool = True) -> tuple[Tensor, list[_Span]]:
    check_characters("the prompt", text)
    try:
        encoded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=special)
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    except (NotImplementedError, KeyError) as error:
        raise ValueError(
            f"{type(tokenizer).__name__} does not say which characters a token stands for, as sources and a "
            "TextTemplateInput need: use a fast tokenizer, or a TextTokenInput."
        ) from error
    return torch.tensor([ids], dtype=torch.long), [(int(start), int(end)) for start, end in offsets]


def _spans_of_value(inp: TextTemplateInput, value: int, text: str) -> list[_Span]:
    """Where a value stands in the text: the template is filled in once more, with marks around it."""
    opening, closing = "\U000f0000", "\U000f0001"  # private characters, which no text means anything by
    values = list(inp.values)
    values[value] = f"{opening}{values[value]}{closing}"  # a number stands in the text as it is written
    by_name = dict(zip(inp.dict_keys, values, strict=True)) if inp.dict_keys else {}
    try:
        marked = inp.format_fn(**by_name) if by_name else inp.format_fn(*values)
    except Exception as error:  # the template takes no text there: it counts, or writes digits in a form of its own
        raise _changed(inp.values[value]) from error
    spans, plain = [], ""
    for number, part in enumerate(marked.split(opening)):
        inside, found, after = part.partition(closing)
        if found and number:
            spans.append((len(plain), len(plain) + len(inside)))
        plain += inside + after
    if plain != text:
        raise _changed(inp.values[value])
    return spans


def _changed(value: Any) -> ValueError:
    return ValueError(
        f"the template changes its value {value!r} or the text around it, so that its tokens cannot be told. Change "
        "the values before they go in, or use a TextTokenInput."
    )


def _one_example(what: str, ids: Tensor) -> Tensor:
    if ids.ndim == 2 and len(ids) == 1:
        ids = ids[0]
    if ids.ndim != 1 or ids.is_floating_point():
        raise ValueError(
            f"{what} should be the ids of one example, (token,) or (1, token), got {ids.dtype} of shape "
            f"{tuple(ids.shape)}. Go through a batch one by one."
        )
    return ids


def _known_id(what: str, token: Any, tokenizer: Any) -> int:
    if isinstance(token, str):
        check_characters(f"{what}, {token!r}", token)
        number = tokenizer.convert_tokens_to_ids(token)
        if number is None or tokenizer.convert_ids_to_tokens(number) != token:
            raise ValueError(
                f"{what}: {token!r} is no token of the vocabulary. Tokens are written with its marks, as "
                "tokenizer.tokenize(text) does; a text goes in as one string, several texts one by one."
            )
        return int(number)
    if isinstance(token, bool) or not isinstance(token, int):
        raise TypeError(f"{what} should be a list of ids or of tokens, got {type(token).__name__} {token!r} in it.")
    if not 0 <= token <= torch.iinfo(torch.long).max:
        raise ValueError(f"{what}: {token} is no id of a token: ids are counted from 0.")
    return token


def _among(ids: Tensor, some: Tensor) -> Tensor:
    return torch.isin(ids.cpu(), some)


def _refuse_empty(ids: Tensor) -> None:
    if not ids.numel():
        raise ValueError(
            "the prompt is empty: there is no token from which the first target token could be predicted. Give at "
            "least the token that begins a text, such as [tokenizer.bos_token_id]."
        )


def _texts(ids: Tensor, tokenizer: Any) -> tuple[str, ...]:
    return tuple(token_texts(ids.tolist(), tokenizer))


def _text(token: str, tokenizer: Any) -> str:
    make = getattr(tokenizer, "convert_tokens_to_string", None)
    text = make([token]).strip() if make is not None else ""
    return text if text and "\ufffd" not in text else token  # blanks and parts of characters have no text of their own
