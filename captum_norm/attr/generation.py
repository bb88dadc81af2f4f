"""From which tokens does a decoder take each token that it writes, while it writes them?

A step of ``generate`` runs the model on the last token alone, over keys and values that its cache has kept: one query,
whose row of the measure explains the next token.  Nothing is computed a second time.

Which position a cached key is shows in its values: those of the positions before are the ones of the step before, in a
row of the batch (beams change rows), and one is new.  Rows of the step before whose values are alike in all calls, as
where a window has moved past what they differ in, make no difference to what comes after: a row may have gone on from
each of them, and tokens tell which texts are its own.

Axes: row of the running batch (example or beam), position of the text, token that was written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import wraps
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from captum_norm.attr._base import MapMethod
from captum_norm.attr._generation_steps import CachedCall, GenerationPass, GenerationStep, unlike
from captum_norm.attr._maps import CallMap, measured
from captum_norm.attr._unread import refuse_lost, refuse_opaque
from captum_norm.attr._writing import Writing, ends_of, watched
from captum_norm.attr.llm import model_of
from captum_norm.capture import Answer, AttentionCall, AttentionRecord, Certificate, Positions, Recorded, recording
from captum_norm.forward.outputs import output_tensor
from captum_norm.functional.gram import growing
from captum_norm.operations.precision import at_least_float32


class GenerationAttribution:
    """Explains each token that ``model.generate`` writes within a ``with``, from the cache, in the same passes.

    Greedy search, sampling and beams, each with a dynamic, static or sliding cache or none, and batches with padding.
    What is said of a token equals what `LLMAttentionAttribution` says of it over the whole text.

    Args:
        attr_method: a method whose row of a call needs no other row: ``AttentionNorm(model)``, ``AttentionWeights`` or
            ``AttentionBlockNorm``, over all calls or one (``aggregate=``).

    Attributes:
        certificates: each attention call, with the check of all steps together.

    Raises:
        TypeError: for other methods (rollouts, ``GlobEnc``, ``ALTI``, ``DecompX``: their answers take rows that are not
            computed again), or one that holds no model.
        ValueError: for an encoder-decoder; within the ``with``, for what cannot be followed: several tokens in one step
            (assisted decoding, a prompt in chunks), a cache that was filled before, prompts as vectors, a second
            text (another ``generate``, classifier-free guidance).
        InexactCaptureError: if an attention call cannot be read exactly.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> from captum_norm import AttentionWeights
        >>> config = GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=None)
        >>> model = GPT2LMHeadModel(config).eval()
        >>> with GenerationAttribution(AttentionWeights(model)) as generation:
        ...     written = model.generate(torch.tensor([[3, 4, 5]]), max_new_tokens=2, pad_token_id=0)
        >>> scores = generation.scores(written)
        >>> scores.shape, scores.sum(-1).round(decimals=4)  # a token's row has weights for what stands before it
        (torch.Size([1, 2, 5]), tensor([[1., 1.]]))
        >>> scores[0, 0, 3:]
        tensor([0., 0.])
    """

    def __init__(self, attr_method: MapMethod) -> None:
        _check_method(attr_method)
        self.attr_method = attr_method
        self.model = model_of(attr_method, type(self).__name__)
        self._calls: list[CachedCall] = []
        self._steps: list[GenerationStep] = []
        self._answer: Answer | None = None
        self._running: list[CallMap] = []
        self._bits: list[int] = []
        self._counts: list[bool] = []
        self._has_gates = False
        self._inside = False
        self._writing: Writing | None = None

    def __enter__(self) -> GenerationAttribution:
        if self._inside:
            raise ValueError("GenerationAttribution: its with is entered already; take one for each generate.")
        self._inside, self._writing = True, None
        self._calls, self._steps, self._answer, self._has_gates = [], [], None, False
        forward = self.model.forward
        self._own = {"forward": self.model.__dict__.get("forward")}
        self.model.forward = wraps(forward)(lambda *args, **kwargs: self._run(forward, args, kwargs))
        self._own |= watched(self.model, self._begin)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name, own in self._own.items():
            if own is None:
                delattr(self.model, name)
            else:
                setattr(self.model, name, own)
        self._inside = False
        if error is None and self._answer is not None and len(self._steps) == 1:
            refuse_opaque(type(self).__name__, self._answer.opaque, ())

    @property
    def certificates(self) -> tuple[tuple[AttentionCall, Certificate], ...]:
        """Each attention call, with the largest error of all steps."""
        return tuple((call.call, call.certificate) for call in self._calls)

    def scores(self, written: Any, ends: Iterable[int] | None = None) -> Tensor:
        """What each token before contributed to each token that was written.

        Args:
            written: what ``generate`` returned, ids (sequence, position) or an output with ``sequences``.
            ends: ids that end a sequence, where a loop of your own wrote it.  What ``generate`` writes ends where it
                found it to end, by whatever it was told: ``eos_token_id``, strings, criteria.

        Returns:
            (sequence, token, position), in the method's unit: a row for each token behind the prompt, 0 from that
            token on.  Rows of what stands behind an end of sequence are 0.

        Raises:
            ValueError: if these sequences were not written within the ``with``, or it is not known where they end.
        """
        sequences = written if isinstance(written, Tensor) else getattr(written, "sequences", None)
        if not isinstance(sequences, Tensor) or sequences.ndim != 2 or sequences.is_floating_point():
            found = f"{sequences.dtype} of shape {tuple(sequences.shape)}" if isinstance(sequences, Tensor) else ""
            raise ValueError(
                f"GenerationAttribution.scores: written should be what generate returned, ids (sequence, position) or "
                f"an output with sequences, got {found or type(written).__name__}. For one sequence, add the axis: "
                "written[:1]."
            )
        if not self._steps:
            raise ValueError("GenerationAttribution: the model wrote nothing within the with; call generate in it.")
        prompt, (count, length) = self._steps[0].length, sequences.shape
        if length <= prompt:
            raise ValueError(
                f"GenerationAttribution: sequences of {length} positions hold nothing that was written: the prompt "
                f"that the first step read has {prompt}. Give what generate returned, prompt included."
            )
        if length - prompt > len(self._steps):
            raise ValueError(
                f"GenerationAttribution: {length - prompt} tokens stand behind a prompt of {prompt}, but "
                f"{len(self._steps)} steps ran within the with. Give what generate returned, prompt included."
            )
        scores = self._steps[0].scores.new_zeros(count, length - prompt, length)
        for number, sequence in enumerate(sequences.cpu()):
            end = self._end(sequence, number, count, ends)
            for place, row in enumerate(self._rows_of(sequence[: end - 1], number, count)):
                scores[number, place, : prompt + place] = self._steps[place].scores[row]
        return scores

    def _rows_of(self, text: Tensor, number: int, count: int) -> list[int]:
        """The row of each step that has read a sequence, the ``number``-th of ``count``, as far as the step goes."""
        size = len(self._steps[0].scores)
        block = None if self._writing is None else self._writing.rows_of(number, count, size)
        found = [] if block is None else self._read_by(text, block)
        known = bool(found) and bool(found[-1].any())
        found = found if known else self._read_by(text, torch.ones(size, dtype=torch.bool))
        rows: list[int] = []
        for step, read in zip(self._steps, found, strict=False):
            same, what = read.nonzero()[:, 0], f"sequence {number} up to position {step.length}"
            if not len(same):
                raise ValueError(
                    f"GenerationAttribution: no row of step {len(rows)} has read {what}: it was not written within the "
                    "with, or a cache changed its rows unseen."
                )
            own = number * len(read) // count
            row = int(same[(same - own).abs().argmin()])
            stayed = row == own and count == size and self._keeps_rows
            if not known and not stayed and not self._is_one(step, same):
                raise ValueError(
                    f"GenerationAttribution: rows {same.tolist()} of step {len(rows)} have all read {what}, behind "
                    "masks of their own, and it is not known which of them it is. Give all sequences that generate "
                    "returned, in their order."
                )
            rows.append(row)
        return rows

    @property
    def _keeps_rows(self) -> bool:
        """Whether each row may have gone on from itself in every step."""
        return all(step.parents is None or bool(step.parents.diagonal().all()) for step in self._steps)

    def _is_one(self, step: GenerationStep, rows: Tensor) -> bool:
        """Whether these rows of a step have the same scores."""
        if self._writing is not None and bool((rows // self._writing.rows == rows[0] // self._writing.rows).all()):
            return True
        scores = step.scores[rows.to(step.scores.device)]
        return torch.allclose(scores, scores[:1].expand_as(scores), rtol=1e-4, atol=1e-6 * float(scores.abs().max()))

    def _read_by(self, text: Tensor, among: Tensor) -> list[Tensor]:
        """Of each step up to the text's end, which rows (row,) have read it, of those that are ``among``."""
        found: list[Tensor] = []
        for step in self._steps:
            if step.length > len(text):
                break
            found.append(step.has_read(text[: step.length], found[-1] if found else among, among))
        return found

    def _end(self, sequence: Tensor, number: int, count: int, ends: Iterable[int] | None) -> int:
        """How many positions of a sequence, the ``number``-th of ``count``, were written, its end included."""
        places, size = range(self._steps[0].length + 1, len(sequence)), len(self._steps[0].scores)
        if ends is None and self._writing is not None:
            writing = self._writing
            found = (place for place in places if writing.has_ended(sequence, place, number, count, size))
            return next(found, len(sequence))
        known = ends_of(self.model) if ends is None else set(ends)
        end = next((place for place in places if int(sequence[place - 1]) in known), len(sequence))
        if ends is None and end < len(sequence):
            token = int(sequence[end - 1])
            raise ValueError(
                f"GenerationAttribution: token {token} at position {end - 1} of sequence {number} ends a sequence by "
                "the model's generation_config, but generate was not seen to write it, and it is not known whether it "
                f"ended this one. Give scores(written, ends=[{token}]) if it did, ends=[] if not."
            )
        return end

    def _run(self, forward: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """One pass of the model: a step."""
        ids = kwargs.get("input_ids", args[0] if args else None)
        if not isinstance(ids, Tensor):
            raise ValueError("GenerationAttribution: the model was given vectors, not ids. Give the prompt as ids.")
        fresh = not self._steps or self._is_whole(ids)
        if not fresh and ids.shape[1] != 1:
            raise ValueError(
                f"GenerationAttribution: {ids.shape[1]} tokens came in one step behind {self._steps[-1].length}: "
                "assisted decoding, a prompt in chunks, a second text (a second generate, the negative prompt of a "
                "guidance_scale). Generate once, one token at a time, or explain the text with LLMAttentionAttribution."
            )
        before = 0 if fresh else self._steps[-1].length
        self._running, self._bits = [], []
        alike = None if fresh else self._may_go_on(len(ids))
        passes, looks = GenerationPass(ids, before, alike), fresh or len(self._steps) < _LOOKED_AT or self._has_gates
        with torch.no_grad(), recording(
            lambda record: self._take(record, passes), sources=(ids,) if looks else (), model=self.model,
            blocks=self.attr_method.reads_block, refuse_dropout=True, beside=_tensors((args, kwargs)),
            calls_only=not looks, together=True,
        ) as recorded:  # fmt: skip
            output = forward(*args, **kwargs)
            self._look(recorded, output)
        if len(self._running) < max(1, len(self._calls)):
            raise ValueError(
                f"GenerationAttribution: {len(self._running)} attention calls were seen in step {len(self._steps)} of "
                f'{type(self.model).__name__}, {len(self._calls)} before. Load it with attn_implementation="sdpa".'
            )
        if not fresh and not passes.goes_on:
            raise ValueError(
                f"GenerationAttribution: a token came in step {len(self._steps)} that reads nothing of the {before} "
                "before it: a second text within one with (a second generate, classifier-free guidance with "
                "guidance_scale). "
                "Take a with for each generate, or explain the text with LLMAttentionAttribution."
            )
        if not self._steps and self._answer is not None:
            reach = self._answer.reach
            self._counts = [not reach or bool(reach & bit) for bit in self._bits]
        aggregate = self.attr_method._new_aggregate()
        for one, counts in zip(self._running, self._counts, strict=True):
            if counts:
                aggregate.add(one)
        scores = aggregate.result((0, 0)).scores[:, 0]
        self._steps.append(GenerationStep(ids.cpu(), passes.length, passes.alike, scores))
        return output

    def _begin(self, writing: Writing) -> None:
        """What ``generate`` was told, when it begins."""
        if self._writing is not None or self._steps:
            raise ValueError(
                "GenerationAttribution: a second generate within one with, or one behind other passes of the model. "
                "Take a with for each."
            )
        self._writing = writing

    def _may_go_on(self, count: int) -> Tensor:
        """From which rows of the step before each row may go on, (row, row before): those of its example."""
        before = len(self._steps[-1].scores)
        alike = torch.ones(count, before, dtype=torch.bool)
        if self._writing is not None and count == before:
            example = torch.arange(count) // self._writing.rows
            alike = example[:, None] == example
        return alike

    def _is_whole(self, ids: Tensor) -> bool:
        """Whether a step reads the text from its beginning again, as without a cache."""
        if ids.shape[1] != self._steps[-1].length + 1:
            return False
        last = max(number for number, step in enumerate(self._steps) if step.parents is None)
        read = torch.ones(len(ids), len(self._steps[last].ids), dtype=torch.bool)
        texts = ids.cpu()
        for step in self._steps[last:]:
            read = torch.stack([step.has_read(text[: step.length], one) for text, one in zip(texts, read, strict=True)])
        return bool(read.any(1).all())

    def _look(self, recorded: Recorded, output: Any) -> None:
        """Refuse where the first step rests on what was not read, or the second shows that it did."""
        title, self._has_gates = type(self).__name__, recorded.flow.readers.are_gates
        if not self._steps:
            self._answer = recorded.answer(output_tensor(output), lambda tensor: tensor[:, -1])
            refuse_lost(title, self._answer.lost)
        elif len(self._steps) == 1 and self._answer is not None:
            refuse_opaque(title, self._answer.opaque, recorded.flow.opaque.parts)

    def _take(self, record: AttentionRecord, passes: GenerationPass) -> None:
        """The map of one call: the last query's row over the text's positions."""
        number = len(self._running)
        if not self._steps:
            self._calls.append(CachedCall(record.call.without_modules, record.certificate))
        elif number >= len(self._calls) or self._calls[number].call.name != record.call.name:
            raise unlike(record, f"another attention call than at the first step ran as number {number}")
        call, last = self._calls[number], record.shape[2] - 1
        positions = call.first(record, passes) if passes.alike is None else call.next(record, passes)
        row = record.at(slice(last, last + 1)).but(queries=None, query_mask=None)
        call.certificate = replace(row.certificate, rows=None, error=max(call.certificate.error, row.certificate.error))
        row = _over_text(row, positions, call.values)
        with growing(call.factors):
            scores = measured(row, self.attr_method.measure)
        placed = scores.new_zeros(len(scores), 1, passes.length, dtype=at_least_float32(scores.dtype))
        placed[..., positions[positions >= 0]] = scores.to(placed.dtype)
        everywhere = Positions(0, torch.arange(passes.length))
        self._running.append(CallMap(call.call, (0, 0), placed, everywhere))
        self._bits.append(record.bit)


# Passes in which all is followed: the first, and a second to tell constants from what was not seen to be made.
_LOOKED_AT = 2


def _tensors(given: Any) -> list[Tensor]:
    """All tensors among arguments: ids, masks by the kind of layer."""
    if isinstance(given, Tensor):
        return [given]
    parts = given.values() if isinstance(given, dict) else given if isinstance(given, list | tuple) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


def _over_text(row: AttentionRecord, positions: Tensor, values: Tensor) -> AttentionRecord:
    """The row of the last position without the keys that are no position yet, which come last, beside its values."""
    end = int((positions >= 0).sum())
    if end == len(positions):
        return row.but(values=values)
    if bool((row.weights[..., end:] != 0).any()):
        raise unlike(row, "it gives weight to keys behind the text")
    mask = None if row.key_mask is None else row.key_mask[:, :end]
    # A static cache has its room behind the query's own key, which was taken to come last.
    block = row.block and replace(row.block, residual_key=torch.tensor([end - 1]))
    return row.but(weights=row.weights[..., :end], values=values, key_mask=mask, keys=None, block=block)


def _check_method(method: Any) -> None:
    if not isinstance(method, MapMethod):
        raise TypeError(
            f"GenerationAttribution takes a method that scores inputs by rows of attention calls, such as "
            f"AttentionNorm(model), got {type(method).__name__}."
        )
    composed = type(method)._read is not MapMethod._read or method._new_aggregate().needs != "rows"
    if composed:
        raise TypeError(
            f"GenerationAttribution: a row of {type(method).__name__} takes more of each call than the same row, and "
            "a step of generate computes no other. Take AttentionNorm, AttentionWeights or AttentionBlockNorm, or "
            "LLMAttentionAttribution, which reads the whole text in one pass."
        )
