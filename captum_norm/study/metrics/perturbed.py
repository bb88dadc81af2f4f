"""What does the model say of a text when some of its tokens are gone?  Perturbed copies, run many at a time.

    intact(forward, scored, quantity)                          -> of the texts as they are    (b,)
    perturbed(forward, scored, examples, keep, ..., quantity)  -> of copies                   (r,)

``quantity`` is of the target: ``"answer"``, its probability or value; ``"log"`` and ``"log_odds"`` of the probability;
``"change"``, how far all answers move from those to the whole text (`captum_norm.study.metrics.answers`).

Axes: b batch, s sequence, r row (a copy of example ``examples[r]`` in which the tokens ``keep[r]`` stay), c class.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from captum_norm.forward import HFForward
from captum_norm.forward.embedding import EmbeddingSites
from captum_norm.forward.keywords import keywords_of, title
from captum_norm.study.metrics.answers import QUANTITIES, Answers, Quantity
from captum_norm.study.metrics.removal import Copies, removal_named
from captum_norm.study.metrics.scored_texts import Scored

_SECONDS = "seconds"


def intact(forward: HFForward, scored: Scored, quantity: Quantity = "answer") -> Tensor:
    """A quantity of the examples as they are, (b,) float64; computed once for each batch.

    Raises:
        ValueError: if the model answers with values and the quantity is of a probability.
    """
    answers = _intact_answers(forward, scored)
    if answers.task == "value" and quantity in ("log", "log_odds"):
        raise ValueError(f"{title(forward.model)} answers with a value, which has no probability and no odds.")
    return answers.quantities(scored.asked, answers.numbers)[:, QUANTITIES.index(quantity)]


def perturbed(
    forward: HFForward,
    scored: Scored,
    examples: Tensor,
    keep: Tensor,
    removal: str,
    max_rows: int,
    quantity: Quantity = "answer",
) -> Tensor:
    """A quantity of copies in which some tokens are gone.

    Args:
        forward: the model, in mode "ids".
        scored: the examples.
        examples: (r,) long, which example each row is a copy of.
        keep: (r, s) bool, False at the tokens to remove; tokens that are not removable stay in any case.
        removal: how, see `captum_norm.study.metrics.removal.REMOVALS`.
        max_rows: how many rows the model runs at once.
        quantity: of the target.

    Returns:
        (r,) float64.  Copies that are the same are run once, also for several metrics of the same scores.

    Raises:
        ValueError: if this model's tokens cannot be removed in this way, an output is no finite number, or the model
            answers with values and the quantity is of a probability.
    """
    intact(forward, scored, quantity)
    kept = scored.copies.setdefault((scored.fingerprint, forward, removal), {})
    return all_quantities(forward, scored, examples, keep, removal, max_rows, kept)[:, QUANTITIES.index(quantity)]


def all_quantities(
    forward: HFForward,
    scored: Scored,
    examples: Tensor,
    keep: Tensor,
    removal: str,
    max_rows: int,
    known: dict[bytes, Tensor],
) -> Tensor:
    """All quantities of copies, (r, 4) in the order of `QUANTITIES`; what is ``known`` is not run, and is added to."""
    apply = removal_named(removal).apply
    keep = scored.whole_units(keep | ~scored.removable[examples], examples)
    rows, place = torch.unique(torch.cat([examples[:, None], keep.long()], dim=1), dim=0, return_inverse=True)
    names = [row.tobytes() for row in rows.to(torch.int32).numpy()]
    lacking = torch.tensor([name not in known for name in names], dtype=torch.bool).nonzero()[:, 0]
    # Copies of like length run together: where tokens are deleted, a chunk is as short as its longest copy.
    length = (rows[lacking, 1:].bool() & scored.removable[rows[lacking, 0]]).sum(1)
    before = _intact_answers(forward, scored).numbers
    for chunk in torch.split(lacking[length.argsort(descending=True, stable=True)], max_rows):
        if len(chunk):
            of = rows[chunk, 0]
            answers = _answers(forward, scored, of, rows[chunk, 1:].bool(), apply)
            found = answers.quantities(scored.asked[of], before[of])
            known.update(zip([names[row] for row in chunk.tolist()], found, strict=True))
    return torch.stack([known[name] for name in names])[place]


def changed(
    forward: HFForward, scored: Scored, examples: Tensor, change: Callable[[Copies], Copies], max_rows: int
) -> Tensor:
    """The target's probability or value of copies that a function changes, chunk by chunk: (r,) float64."""
    everything = torch.ones_like(scored.removable)
    answers = [
        _answers(forward, scored, chunk, everything[chunk], change).numbers.gather(1, scored.asked[chunk][:, None])
        for chunk in torch.split(examples, max_rows)
    ]
    return torch.cat(answers)[:, 0]


def remembered(scored: Scored, key: Any, compute: Callable[[], Any]) -> Any:
    """What ``compute`` returns; computed once for a key, these texts and these targets."""
    full = (scored.fingerprint, key)
    if full not in scored.memo:
        start, before = time.perf_counter(), shared_seconds(scored)
        scored.memo[full] = compute()
        # in place of what was counted within
        scored.memo[_SECONDS] = before + time.perf_counter() - start
    return scored.memo[full]


def shared_seconds(scored: Scored) -> float:
    """What computing took that all methods and metrics of these texts share."""
    return float(scored.memo.get(_SECONDS, 0.0))


def _intact_answers(forward: HFForward, scored: Scored) -> Answers:
    def run() -> Answers:
        everything = torch.ones_like(scored.removable)
        return _answers(forward, scored, torch.arange(len(scored)), everything, lambda copies: copies)

    answers: Answers = remembered(scored, (forward, "answers"), run)
    return answers


def _answers(
    forward: HFForward, scored: Scored, examples: Tensor, keep: Tensor, apply: Callable[[Copies], Copies]
) -> Answers:
    """What the model says of every copy."""
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
            scored.rows,
        )
    )
    last = () if position is None else (position.index_select(0, examples),)
    logits = _run(forward, copies, last)
    if scored.places is not None:
        logits = logits.masked_fill(~scored.places.to(device)[examples], -torch.inf)
    of = examples.cpu()
    if scored.foil is not None:
        pairs = torch.stack([scored.target, scored.foil], dim=1)[of]
        logits = logits.gather(1, pairs.to(logits.device))
    return Answers.of(forward.model, logits, scored.asked[of])


def _arguments(forward: HFForward, scored: Scored) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
    """The model's input, its extras by name, and the position of each example where one was given for each."""
    arguments = forward.inputs(scored.inputs, scored.rows)
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
