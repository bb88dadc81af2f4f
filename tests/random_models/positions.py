"""Rows that are asked for by position: one of each example, all of them, and all of one call, by ``AttentionNorm``.

The output's own row is seen in the data flow; a position that the user names is counted in every call's queries.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import captum_norm
from tests.random_models.check import Case, Finding, classified_error, distance, flat, wrong_scores
from tests.random_models.config import Config
from tests.random_models.definitions import Answer, mean_of_calls
from tests.random_models.truth import Call

CHECKS = ("a position", "all positions", "each call")


class Positions:
    """A random transformer, and rows of it by position: of a text its tokens, of vectors whatever stands in their row.

    Latents, which read the input in rows of their own, are not asked.
    """

    def __init__(self, config: Config) -> None:
        self.case = Case(config)
        self.truth = self.case.truth
        generator = torch.Generator().manual_seed(config.seed)
        before = 0 if config.inputs == "ids" else self.truth.prefix
        self.real = torch.cat([self.truth.real.new_ones(len(self.truth.real), before), self.truth.real], 1)
        draws = torch.rand(self.real.shape, generator=generator).masked_fill(~self.real, -1)
        self.first, self.position = self.truth.prefix - before, draws.argmax(1)  # (b,), a real one

    def findings(self) -> list[Finding]:
        """Every check, classified."""
        return [] if self.case.config.stack == "latents" else [self._checked(check) for check in CHECKS]

    def _checked(self, check: str) -> Finding:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                wrong = getattr(self, f"_{check.replace(' ', '_')}")()
        except Exception as error:
            return classified_error(check, error, self.case.model)
        return Finding(check, "silent" if wrong else "right", wrong)

    def _ask(self, position: Any, aggregate: Any = "mean") -> Answer:
        case = self.case
        needs_target = case.config.readout != "every position"
        given = case.tensors if len(case.tensors) > 1 else case.tensors[0]
        found = captum_norm.AttentionNorm(case.model, aggregate=aggregate).attribute(
            given, target=self.truth.target if needs_target else None, additional_forward_args=case.told or None,
            position=position,
        )  # fmt: skip
        return tuple(s.detach().double() for s in (found if isinstance(found, tuple) else (found,)))

    def _a_position(self) -> str:
        found = flat(tuple(self._ask(self.position.tolist())))
        return wrong_scores(found, self._row(self.position), self.case.tolerance_of_states)

    def _all_positions(self) -> str:
        found = self._ask("all")
        for position in range(self.real.shape[1]):
            real = self.real[:, position]
            if not real.any():
                continue
            expected = self._row(torch.full((len(real),), position))
            if expected is None:
                return f"an answer at position {position}, where there is none"
            rows = tuple(one[:, position].flatten(2).sum(-1) if one.ndim > 3 else one[:, position] for one in found)
            rows = tuple(row[real] for row in rows)
            wrong = wrong_scores(rows, tuple(one[real] for one in expected), self.case.tolerance_of_states)
            if wrong:
                return f"position {position}: {wrong}"
        return ""

    def _each_call(self) -> str:
        calls = [(number, call) for number, call in enumerate(self.truth.calls)]
        for number in range(len(calls)):
            try:
                found = self._ask("all", number)
            except ValueError as error:
                if number and "calls" in str(error):
                    break
                raise
            here = next((one for one in calls if self._is_map_of(found, one[1])), None)
            if here is None:
                return f"aggregate={number} is none of the model's calls"
            calls.remove(here)
        return ""

    def _row(self, position: Tensor) -> Answer | None:
        """The definition at a position of each example; None where only a refusal is right."""
        truth, last = self.truth, len(self.truth.lengths) - 1
        index = position + self.first - truth.prefix
        for number in truth.used:
            call = truth.calls[number]
            if call.query_source != last:
                continue
            if call.query_index is None or not set(index.tolist()) <= set(call.query_index.tolist()):
                return None
        rows = torch.zeros(len(index), truth.prefix + truth.lengths[-1], dtype=torch.float64)
        rows[torch.arange(len(rows)), position + self.first] = 1
        return mean_of_calls(replace(truth, rows=rows), [call.summed_norms() for call in truth.calls])

    def _is_map_of(self, found: Answer, call: Call) -> bool:
        """Whether the answer for the input that holds a call's keys is its map, a row for each query that is answered.

        Rows of padding are not looked at, nor are learned vectors before a text, which are no positions.
        """
        if call.query_index is None or call.key_index is None:
            return False
        first = 0 if self.case.config.inputs == "ids" else min(0, int(call.query_index.min()))
        order = call.query_index.argsort()
        rows, keys = order[call.query_index[order] >= first], (call.key_index >= 0).nonzero()[:, 0]
        expected = torch.zeros(len(self.real), len(rows), self.truth.lengths[call.key_source], dtype=torch.float64)
        expected.index_add_(2, call.key_index[keys], call.summed_norms()[:, rows][:, :, keys])
        looked_at = torch.ones(expected.shape[:2], dtype=torch.bool)
        last = len(self.truth.lengths) - 1
        if call.query_source == last:
            looked_at = self.real[:, call.query_index[rows] - first]
        if call.key_source == last:
            expected = expected * self.truth.real[:, None]
        one = found[call.key_source]
        one = one.flatten(3).sum(-1) if one.ndim > 3 else one
        if call.answered is not None and one.shape[1] < len(rows):
            expected = expected.gather(1, call.answered[..., None].expand(-1, -1, expected.shape[2]))
            looked_at = looked_at.gather(1, call.answered)
        if one.shape != expected.shape:
            return False
        return distance(one[looked_at], expected[looked_at]) <= self.case.tolerance_of_states
