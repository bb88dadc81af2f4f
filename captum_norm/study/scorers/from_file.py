"""Scores that were computed elsewhere, as a method of a study."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from captum_norm.study.batches import TextBatch, Tokenized
from captum_norm.study.records import records_of_lines
from captum_norm.study.scorers.scorer import Scorer
from captum_norm.study.variants import StoredScores


@dataclass
class StoredScorer(Scorer):
    """Scores that were computed elsewhere."""

    stored: StoredScores
    special: str

    def __post_init__(self) -> None:
        self.name = self.stored.name
        self.by_key = _read_scores(Path(self.stored.path))

    def score(self, batch: TextBatch) -> Tensor:
        scores = torch.zeros(batch.real.shape, dtype=torch.float64)
        for row, text in enumerate(batch.examples):
            scores[row, batch.real[row]] = self._scores(text)
        return scores

    def describe(self) -> dict[str, Any]:
        digest = hashlib.blake2b(Path(self.stored.path).read_bytes(), digest_size=16).hexdigest()
        return {"name": self.name, "stored": digest, "special": self.special}

    def _scores(self, text: Tokenized) -> Tensor:
        """(token,): as the file has them, or each word's score shared by its tokens."""
        scores = self.by_key.get(text.example.key)
        if scores is None:
            raise ValueError(f"{self.stored.path} has no scores for {text.example.where} (key {text.example.key!r}).")
        if len(scores) == len(text):
            return torch.tensor(scores, dtype=torch.float64)
        index = [None if is_special else word for word, is_special in zip(text.words.index, text.special, strict=True)]
        words = list(dict.fromkeys(word for word in index if word is not None))
        if len(scores) != len(words):
            raise ValueError(
                f"{self.stored.path}: {text.example.where} has {len(text)} tokens and {len(words)} words, "
                f"but {len(scores)} scores."
            )
        of_word = dict(zip(words, scores, strict=True))
        shares = [0.0 if word is None else of_word[word] / index.count(word) for word in index]
        return torch.tensor(shares, dtype=torch.float64)


def _read_scores(path: Path) -> dict[str, list[float]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file of scores.")
    scores: dict[str, list[float]] = {}
    seen: dict[str, str] = {}
    for where, record in records_of_lines(path):
        name, of_text = record.get("id"), record.get("scores")
        if name is None or not isinstance(of_text, list) or not all(map(_is_number, of_text)):
            raise ValueError(
                f'{where} should be {{"id": ..., "scores": [...]}} with a number for each token or word, got '
                f"{json.dumps(record)[:80]}."
            )
        key = str(name)
        if key in seen:
            raise ValueError(f"{where} has scores of {key!r}, as {seen[key]} has: leave one of them out.")
        seen[key], scores[key] = where, [float(score) for score in of_text]
    return scores


def _is_number(score: Any) -> bool:
    return isinstance(score, int | float) and not isinstance(score, bool)
