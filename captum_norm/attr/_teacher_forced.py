"""One pass of a method over a prompt and what follows it, as in training: the row before a token is what predicts it.

Axes: token of what the model reads, target token.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from captum_norm.attr._base import InputMethod
from captum_norm.attr._beside_prompt import check_beside, continued
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
        check_beside(self._given, ids.shape[1], self._read.shape[1])
        self._method.forward_func = self
        self._logits: Tensor | None = None

    @property
    def fixed(self) -> dict[str, Any]:
        """What the model is given beside the ids; by this name it is known what was there before the model ran."""
        return continued(self._given, self._first + 1, self._read.shape[1], self._type)

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
        types: tuple[int, ...] = (0,)
        if self._given.get("token_type_ids") is not None:
            if self._types_only_mask():
                types = (0, 1)
            elif self._read.shape[1] > self._first + 1 and bool(self._given["token_type_ids"][0, -1] != 0):
                raise ValueError(
                    f"LLMAttentionAttribution: the token_type_ids that HFForward fixes end in another type than 0, and "
                    f"it is not known of which type {type(self.model).__name__} takes a target to be. Leave them out, "
                    "or use the method itself: attribute(ids, position=...), ids and types with the target in them."
                )
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
        try:
            output = self.model(ids, **self.fixed)
        except IndexError as error:
            positions = self.fixed.get("position_ids")
            if positions is None:
                raise
            raise ValueError(
                f"LLMAttentionAttribution: the position_ids that HFForward fixes go on to {int(positions.max())} over "
                f"the target, and a table of {type(self.model).__name__} ends before ({error}). Shorten the target, or "
                "begin at lower positions."
            ) from error
        logits = output.get("logits") if isinstance(output, Mapping) else output
        self._logits = logits if isinstance(logits, Tensor) and logits.ndim == 3 else None
        if self._logits is not None and self._logits.shape[1] != ids.shape[1]:
            raise ValueError(
                f"LLMAttentionAttribution: {type(self.model).__name__} gives {self._logits.shape[1]} rows of logits "
                f"for {ids.shape[1]} tokens, so it is not known which row predicts a target token. Use the method "
                "itself: attribute(ids, position=...), where the position is that of a row."
            )
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
        keywords = {**continued(self._given, prompt, prompt + 1, self._type), "input_ids": ids}
        rows = torch.arange(prompt + 1, device=ids.device)[None] >= self._first
        return is_causal(run, keywords, "input_ids", EmbeddingSites(self.model, "input_ids", None), rows)


def _length_read(method: InputMethod, model: Module, whole: int) -> int:
    """The last target token is predicted, not read, unless it alone would show whether the model looks ahead."""
    longest = longest_input(model)
    return max(2, whole - 1) if method.certifies_calls or (longest is not None and whole > longest) else whole


def fixed_arguments(method: InputMethod) -> dict[str, Any]:
    """What the method's ``HFForward`` passes to the model in every call; nothing for a method without one.

    Outputs are read by their names here, so ``return_dict`` is left out.
    """
    forward = unwrapped(method.forward_func)
    fixed = forward.fixed if isinstance(forward, HFForward) else {}
    return {name: value for name, value in fixed.items() if name != "return_dict"}
