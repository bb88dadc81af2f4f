"""One pass of a method over a prompt and what follows it, as in training: the row before a token is what predicts it.

Axes: token of what the model reads, target token.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Module

from captum_norm.attr._base import InputMethod
from captum_norm.capture import AttentionCall, Certificate, Mixer
from captum_norm.forward import HFForward
from captum_norm.forward.causal import is_causal
from captum_norm.forward.embedding import EmbeddingSites
from captum_norm.forward.inputs import check_inputs, longest_input
from captum_norm.forward.keywords import unwrapped


class TeacherForced:
    """One pass of a method over prompt and target: the rows that predict the target's tokens.

    Args:
        method: the method; a copy of it runs.
        model: the language model.
        ids: the prompt, (1, token).
        answer: the target, (target,).
        arguments: for the method's ``attribute``.
    """

    def __init__(
        self, method: InputMethod, model: Module, ids: Tensor, answer: Tensor, arguments: Mapping[str, Any]
    ) -> None:
        whole = torch.cat([ids, answer[None]], dim=1)
        self._read = whole[:, : _length_read(method, model, whole.shape[1])]
        self._answer, self._first = answer, ids.shape[1] - 1
        self._arguments = arguments
        self.model = model
        check_inputs(model, {"input_ids": self._read})
        self._given, self._method, self._type = fixed_arguments(method), copy(method), 0
        self._method.forward_func = self
        self._logits: Tensor | None = None

    @property
    def fixed(self) -> dict[str, Any]:
        """What the model is given beside the ids; by this name it is known what was there before the model ran."""
        return _extended(self._given, self._first + 1, self._read.shape[1], self._type)

    @property
    def certificates(self) -> tuple[tuple[AttentionCall, Certificate], ...]:
        """What was read."""
        return self._method.report.certificates

    @property
    def mixers(self) -> tuple[Mixer, ...]:
        """What beside attention mixed positions."""
        return self._method.report.mixers

    def rows(self) -> Tensor:
        """Run the method: (target, token), the scores of all that the model read.

        Raises:
            ValueError: if the model's attention looks ahead.
        """
        positions = list(range(self._first, self._first + len(self._answer)))
        each = zip(positions, self._answer.tolist(), strict=True)
        targets = [self._method.target_at(row, token) for row, token in each]
        # Types tell some models what was written: of type 0, or of type 1 where a prompt of type 0 is read both ways.
        types = (0, 1) if "token_type_ids" in self._given and self._types_only_mask() else (0,)
        for self._type in types:
            scores = self._method.attribute_each(self._read, targets, positions, **self._arguments)[:, 0]
            ahead = self._looks_ahead(scores)
            if not ahead:
                break
        else:
            self._refuse(ahead)
        return scores

    def probabilities(self) -> Tensor | None:
        """What probability the model gave to each target token, (target,); None for a model without logits."""
        return None if self._logits is None else self._of_answer(self._rows_of(self._logits).softmax(-1))

    def logits(self) -> Tensor:
        """The logit of each target token, (target,)."""
        assert self._logits is not None  # they are what the method has explained
        return self._of_answer(self._rows_of(self._logits))

    def _rows_of(self, logits: Tensor) -> Tensor:
        rows = self._chosen(logits[0].detach())
        return rows.to(torch.promote_types(rows.dtype, torch.float32))

    def _of_answer(self, rows: Tensor) -> Tensor:
        return rows.gather(1, self._answer[:, None].to(rows.device))[:, 0]

    def _chosen(self, rows: Tensor) -> Tensor:
        return rows[self._first : self._first + len(self._answer)]

    def __call__(self, ids: Tensor) -> Any:
        """What the model returns, its logits kept."""
        output = self.model(ids, **self.fixed)
        logits = output.get("logits") if isinstance(output, Mapping) else output
        self._logits = logits if isinstance(logits, Tensor) and logits.ndim == 3 else None
        return output

    def _types_only_mask(self) -> bool:
        """Whether a token alone is the same of either type: types then say who reads whom, and are not embedded."""
        token = self._answer[:1][None].to(self._read)
        try:
            with torch.no_grad():
                both = [self.model(input_ids=token, token_type_ids=torch.full_like(token, n)) for n in (0, 1)]
        except (IndexError, RuntimeError, TypeError, ValueError):  # it does not run without its picture: not known
            return False
        logits = [one["logits"] if isinstance(one, Mapping) else one for one in both]
        return torch.equal(*logits)

    def _looks_ahead(self, scores: Tensor) -> str:
        """What lets rows read the target that they are to predict; "" where nothing does."""
        ahead = [f"attention call {call.name!r}" for call, _ in self.certificates if call.kind != "causal"]
        later = torch.ones_like(scores, dtype=torch.bool).triu(self._first + 1)
        if bool(scores[later].any()) or (ahead and not self._last_row_stands_alone()):
            return (ahead or ["attention"])[0]
        return ""

    def _refuse(self, ahead: str) -> None:
        raise ValueError(
            f"LLMAttentionAttribution: {ahead} of {type(self.model).__name__} looks ahead or at another sequence, but "
            "a target token is explained by the row before it only in a causal language model. One that is told what "
            "is prompt (PaliGemma) takes HFForward(model, token_type_ids=zeros of the prompt's shape). Else use the "
            "method itself: attribute(ids, position=...), ids with what was written."
        )

    def _last_row_stands_alone(self) -> bool:
        """Whether the prompt's last row does not depend on the target, so that what looks ahead reads something else:
        a picture, a sound, the prompt by itself.  That target rows themselves do not is seen in their scores."""
        def run(keywords: dict[str, Any]) -> Tensor:
            output = self.model(**keywords)
            logits: Tensor = output["logits"] if isinstance(output, Mapping) else output
            return logits

        prompt = self._first + 1
        ids = torch.cat([self._read[:, :prompt], self._answer[None, :1].to(self._read)], dim=1)
        keywords = {**_extended(self._given, prompt, prompt + 1, self._type), "input_ids": ids}
        rows = torch.arange(prompt + 1, device=ids.device)[None] >= self._first
        return is_causal(run, keywords, "input_ids", EmbeddingSites(self.model, "input_ids", None), rows)


def _extended(fixed: Mapping[str, Any], prompt: int, whole: int, of_type: int) -> dict[str, Any]:
    """Arguments of the prompt's tokens, (1, token), for the target too, which is text of a type: a mask of ones."""
    values = {"attention_mask": 1, "token_type_ids": of_type}

    def longer(name: str, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.shape != (1, prompt):
            return value
        return nn.functional.pad(value, (0, whole - prompt), value=values.get(name, 0))

    return {name: longer(name, value) for name, value in fixed.items()}


def _length_read(method: InputMethod, model: Module, whole: int) -> int:
    """The last target token is predicted, not read, unless it alone would show whether the model looks ahead."""
    longest = longest_input(model)
    return max(2, whole - 1) if method.certifies_calls or (longest is not None and whole > longest) else whole


def fixed_arguments(method: InputMethod) -> dict[str, Any]:
    """What the method's ``HFForward`` passes to the model in every call; nothing for a method without one."""
    forward = unwrapped(method.forward_func)
    return dict(forward.fixed) if isinstance(forward, HFForward) else {}
