"""What does the model say of a text when some of its tokens are gone?  Perturbed copies, run many at a time.

    intact(forward, scored)                          -> log p(target | x)          (b,)
    perturbed(forward, scored, examples, keep, ...)  -> log p(target | x, keep)    (r,)
    changes(forward, scored, examples, keep, ...)    -> how far the answers move   (r,), (r,)

Axes: b batch, s sequence, r row (a copy of example ``examples[r]`` in which the tokens ``keep[r]`` stay), c class.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from captum_norm.forward import HFForward
from captum_norm.forward.embedding import EmbeddingSites
from captum_norm.forward.keywords import keywords_of, title, unwrapped
from captum_norm.study.metrics.removal import Copies, removal_named
from captum_norm.study.metrics.scored_texts import Scored


def intact(forward: HFForward, scored: Scored) -> Tensor:
    """log p(target | x) of the examples as they are, (b,) float64; computed once for each batch."""

    def run() -> Tensor:
        return _of_target(scored, _intact_answers(forward, scored), torch.arange(len(scored)))

    log_p: Tensor = remembered(scored, (forward, "intact"), run)
    return log_p


def perturbed(
    forward: HFForward, scored: Scored, examples: Tensor, keep: Tensor, removal: str, max_rows: int
) -> Tensor:
    """log p(target | x, keep) of copies in which some tokens are gone.

    Args:
        forward: the model, in mode "ids".
        scored: the examples.
        examples: (r,) long, which example each row is a copy of.
        keep: (r, s) bool, False at the tokens to remove; tokens that are not removable stay in any case.
        removal: how, see `captum_norm.study.metrics.removal.REMOVALS`.
        max_rows: how many rows the model runs at once.

    Returns:
        (r,) float64.  Copies that are the same are run once.

    Raises:
        ValueError: if this model's tokens cannot be removed in this way, or an output is no finite number.
    """
    return _of_copies(forward, scored, examples, keep, removal, max_rows, partial(_of_target, scored))


def changes(
    forward: HFForward, scored: Scored, examples: Tensor, keep: Tensor, removal: str, max_rows: int
) -> tuple[Tensor, Tensor]:
    """How far the answer moves when some tokens are gone; arguments and errors are those of `perturbed`.

    Returns:
        p(target | x) - p(target | x, keep), and the total variation distance 1/2 sum over classes of |Δp|: (r,) float64
        each.
    """
    before = _intact_answers(forward, scored).exp()

    def moved(log_p: Tensor, rows: Tensor) -> Tensor:
        differences = before[rows] - log_p.exp()
        return torch.stack([_of_target(scored, differences, rows), differences.abs().sum(1) / 2], dim=1)

    drops, distances = _of_copies(forward, scored, examples, keep, removal, max_rows, moved).unbind(1)
    return drops, distances


def changed(
    forward: HFForward, scored: Scored, examples: Tensor, change: Callable[[Copies], Copies], max_rows: int
) -> Tensor:
    """log p(target) of copies that a function changes, chunk by chunk: (r,) float64."""
    everything = torch.ones_like(scored.removable)
    log_p = [
        _of_target(scored, _log_probabilities(forward, scored, chunk, everything[chunk], change), chunk)
        for chunk in torch.split(examples, max_rows)
    ]
    return torch.cat(log_p)


def remembered(scored: Scored, key: Any, compute: Callable[[], Any]) -> Any:
    """What ``compute`` returns; computed once for a key, these texts and these targets."""
    full = (scored.fingerprint, key)
    if full not in scored.memo:
        scored.memo[full] = compute()
    return scored.memo[full]


def _of_copies(
    forward: HFForward,
    scored: Scored,
    examples: Tensor,
    keep: Tensor,
    removal: str,
    max_rows: int,
    read: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """What ``read(log_p, examples)``, (r, class) and (r,) -> (r, ...), makes of every copy's answer: (r, ...)."""
    apply = removal_named(removal).apply
    keep = keep | ~scored.removable[examples]
    rows, place = torch.unique(torch.cat([examples[:, None], keep.long()], dim=1), dim=0, return_inverse=True)
    # Copies of like length run together: where tokens are deleted, a chunk is as short as its longest copy.
    by_length = (rows[:, 1:].bool() & scored.removable[rows[:, 0]]).sum(1).argsort(descending=True, stable=True)
    answers = [
        read(_log_probabilities(forward, scored, chunk[:, 0], chunk[:, 1:].bool(), apply), chunk[:, 0])
        for chunk in torch.split(rows[by_length], max_rows)
    ]
    return torch.cat(answers)[by_length.argsort()[place]]


def _intact_answers(forward: HFForward, scored: Scored) -> Tensor:
    """log p of every class, (b, c)."""

    def run() -> Tensor:
        everything = torch.ones_like(scored.removable)
        return _log_probabilities(forward, scored, torch.arange(len(scored)), everything, lambda copies: copies)

    log_p: Tensor = remembered(scored, (forward, "answers"), run)
    return log_p


def _of_target(scored: Scored, of_classes: Tensor, examples: Tensor) -> Tensor:
    """Each row's number for its target: (r, c) -> (r,)."""
    return of_classes.gather(1, scored.target[examples][:, None])[:, 0]


def _log_probabilities(
    forward: HFForward, scored: Scored, examples: Tensor, keep: Tensor, apply: Callable[[Copies], Copies]
) -> Tensor:
    """log p of every class of every copy, (r, c) float64 on the CPU."""
    main, extras, position = remembered(scored, (forward, "arguments"), lambda: _arguments(forward, scored))
    device = main.device
    examples = examples.to(device)
    copies = apply(
        Copies(
            main.index_select(0, examples),
            {name: value.index_select(0, examples) for name, value in extras.items()},
            keep.to(device),
            examples.cpu(),
            forward,
            scored.mask_id,
            scored.memo,
        )
    )
    last = () if position is None else (position.index_select(0, examples),)
    logits = _run(forward, copies, last)
    return _checked(forward, logits, scored.target[examples.cpu()])


def _arguments(forward: HFForward, scored: Scored) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
    """The model's input, its extras by name, and the position of each example where one was given for each."""
    arguments = forward.inputs(scored.inputs)
    main, extras = arguments["inputs"], arguments["additional_forward_args"] or ()
    if not main.is_floating_point() and main.shape != scored.scores.shape:
        raise ValueError(
            f"Scored: scores are {tuple(scored.scores.shape)}, but the model takes ids of shape {tuple(main.shape)}; "
            "there is one score per token, padding included."
        )
    named = {name: value for name, value in zip(forward.names, extras, strict=False) if value is not None}
    position = extras[len(forward.names)] if len(extras) > len(forward.names) else None
    return main, named, position


def _run(forward: HFForward, copies: Copies, position: tuple[Tensor, ...]) -> Tensor:
    extras = tuple(copies.extras.get(name) for name in forward.names)
    if copies.change is None:
        around: Any = nullcontext()
    else:
        main_name = next(iter(keywords_of(forward.model)), "input_ids")
        around = EmbeddingSites(forward.model, main_name, forward.embedding).changed(copies.main, copies.change)
    with torch.no_grad(), around:
        logits: Tensor = forward(copies.main, *extras, *position)
    return logits


def _checked(forward: HFForward, logits: Tensor, target: Tensor) -> Tensor:
    """log p of every class, (r, c) float64 on the CPU, once each row's target is known to be a class with a number."""
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(
            f"{title(forward.model)} returns {tuple(logits.shape)}: a metric of probabilities needs at least two "
            "classes, (batch, class)."
        )
    classes = logits.shape[1]
    wrong = target[(target < 0) | (target >= classes)].tolist()
    if wrong:
        raise ValueError(f"Scored: target {wrong[0]} is no class of {title(forward.model)}, which has {classes}.")
    if not torch.isfinite(logits.gather(1, target[:, None].to(logits.device))).all():
        raise ValueError(f"{title(forward.model)} returned NaN or infinity for a target; nothing can be measured.")
    config = getattr(unwrapped(forward.model), "config", None)
    several = getattr(config, "problem_type", None) == "multi_label_classification"
    logs = logits.double().cpu()
    return torch.nn.functional.logsigmoid(logs) if several else logs.log_softmax(-1)
