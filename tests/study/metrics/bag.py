"""A model that can be computed by hand, padded texts for it, and the definitions of metrics written slowly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from captum.attr import Saliency
from torch import Tensor, nn

from captum_norm import HFForward
from captum_norm.study.metrics.scored_texts import Scored
from tests.attr.models import tiny

PAD, CLS, SEP, MASK = 0, 1, 2, 3
VOCABULARY = 40
BERT = tiny("Bert")


class BagOfTokens(nn.Module):
    """Logits are the sum of one row per token: what a token contributes is its row."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 3, dtype=torch.float64)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            self.embedding.weight.copy_(0.7 * torch.randn(VOCABULARY, 3, generator=generator, dtype=torch.float64))
        self.eval()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        rows = self.embedding(input_ids)
        return rows.sum(1) if attention_mask is None else (rows * attention_mask[..., None]).sum(1)


LENGTHS = (7, 4, 9)
ROWS = range(len(LENGTHS))


def texts(lengths: Sequence[int] = LENGTHS, seed: int = 0) -> list[Tensor]:
    """Ids between CLS and SEP, none of them special."""
    generator = torch.Generator().manual_seed(seed)
    middle = [torch.randint(5, VOCABULARY, (n,), generator=generator) for n in lengths]
    return [torch.cat([torch.tensor([CLS]), ids, torch.tensor([SEP])]) for ids in middle]


def padded(rows: Sequence[Tensor], left: bool = False) -> dict[str, Tensor]:
    """The texts side by side."""
    longest = max(map(len, rows))
    ids, mask = torch.full((2, len(rows), longest), PAD)
    for row, text in enumerate(rows):
        place = slice(longest - len(text), None) if left else slice(len(text))
        ids[row, place], mask[row, place] = text, 1
    return {"input_ids": ids, "attention_mask": mask}


def random_scored(lengths: Sequence[int] = LENGTHS, seed: int = 0, classes: int = 3, left: bool = False) -> Scored:
    """Texts with random scores, evidence and targets."""
    inputs = padded(texts(lengths, seed), left)
    ids = inputs["input_ids"]
    generator = torch.Generator().manual_seed(seed + 1)
    removable = ids > 4
    evidence = removable & (torch.rand(ids.shape, generator=generator) < 0.4)
    evidence |= removable & (removable.cumsum(1) == 2)
    scores = torch.randn(ids.shape, generator=generator, dtype=torch.float64)
    target = torch.randint(classes, (len(ids),), generator=generator)
    return Scored(inputs, scores, target, removable, evidence, mask_id=MASK)


def single(scored: Scored, row: int) -> Scored:
    """One example by itself, without its padding."""
    real = scored.inputs["attention_mask"][row] > 0
    inputs = {name: value[row : row + 1, real] for name, value in scored.inputs.items()}
    evidence = None if scored.evidence is None else scored.evidence[row : row + 1, real]
    return Scored(
        inputs,
        scored.scores[row : row + 1, real],
        scored.target[row : row + 1],
        scored.removable[row : row + 1, real],
        evidence,
        mask_id=scored.mask_id,
    )


def probability(model: Any, ids: Sequence[int], target: int) -> float:
    """p(target) of one text without padding."""
    with torch.no_grad():
        output = model(input_ids=torch.tensor([list(ids)]), attention_mask=torch.ones(1, len(ids), dtype=torch.long))
    logits = output if isinstance(output, Tensor) else output.logits
    return float(logits.double().softmax(-1)[0, target])


class Example:
    """One example of a batch in plain Python: ids, scores, places that may be removed, in the method's order."""

    def __init__(self, scored: Scored, row: int) -> None:
        one = single(scored, row)
        self.ids = one.inputs["input_ids"][0].tolist()
        self.target = int(one.target)
        scores = one.scores[0].tolist()
        self.removable = one.removable[0].nonzero().flatten().tolist()
        self.order = sorted(self.removable, key=lambda place: -scores[place])

    def without(self, removed: Sequence[int]) -> list[int]:
        """The ids that are left."""
        return [token for place, token in enumerate(self.ids) if place not in set(removed)]


def forward(model: nn.Module | None = None) -> HFForward:
    """The bag, or another model, as metrics take it."""
    return HFForward(BagOfTokens() if model is None else model)


def saliency(forward: HFForward, inputs: Tensor, **arguments: Any) -> Tensor:
    """A method as metrics that run it again take it."""
    return Saliency(forward).attribute(inputs, **arguments)
