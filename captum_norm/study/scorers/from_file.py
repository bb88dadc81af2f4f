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
        for row, one in enumerate(batch.examples):
            scores[row, batch.real[row]] = self._scores(one)
        return scores

    def describe(self) -> dict[str, Any]:
        digest = hashlib.blake2b(Path(self.stored.path).read_bytes(), digest_size=16).hexdigest()
        return {"name": self.name, "stored": digest, "special": self.special}

    def _scores(self, one: Tokenized) -> Tensor:
        given = self.by_key.get(one.example.key)
        if given is None:
            raise ValueError(f"{self.stored.path} has no scores for {one.example.where} (key {one.example.key!r}).")
        if len(given) == len(one):
            return torch.tensor(given, dtype=torch.float64)
        plain = [None if is_special else word for word, is_special in zip(one.words.index, one.special, strict=True)]
        words = list(dict.fromkeys(word for word in plain if word is not None))
        if len(given) != len(words):
            raise ValueError(
                f"{self.stored.path}: {one.example.where} has {len(one)} tokens and {len(words)} words, "
                f"but {len(given)} scores."
            )
        score = dict(zip(words, given, strict=True))
        return torch.tensor([0.0 if w is None else score[w] / plain.count(w) for w in plain], dtype=torch.float64)


def _read_scores(path: Path) -> dict[str, list[float]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file of scores.")
    found: dict[str, list[float]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            found[str(record["id"])] = [float(score) for score in record["scores"]]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f'{path}, line {number} should be {{"id": ..., "scores": [...]}}: {error!r}.') from error
    return found
