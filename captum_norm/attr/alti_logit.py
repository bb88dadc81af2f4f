"""Why did a decoder write this token, and not that one?  The parts of its logit, tracked down to the inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from captum_norm.attr._base import InputMethod
from captum_norm.attr._captum import Attribution, extra_arguments, is_tuple, run_forward
from captum_norm.attr._contrast import logits_of, token_pairs
from captum_norm.attr._decoder import block_of_decoder, one_input
from captum_norm.attr._encoding import captum_attribute_with_delta, takes_encodings
from captum_norm.attr._forward import outside_inference_mode, position_given, readable
from captum_norm.attr._logit import LaterRowMap, LogitParts, RowMap, TrackedLogitParts
from captum_norm.attr._maps import LaterMap, at_rows, call_map, measured, without_padding
from captum_norm.attr._placing import finished, spread
from captum_norm.attr._position import PositionType, Rows
from captum_norm.attr._reduction import Reduction
from captum_norm.attr._report import AttributionReport
from captum_norm.attr._rows_asked import rows_of_text
from captum_norm.attr.alti import ALTI
from captum_norm.capture import AttentionRecord, Recorded
from captum_norm.forward import resolve_position
from captum_norm.forward.outputs import output_tensor
from captum_norm.linear import Readout, Seen, Tail, read_out
from captum_norm.measures import alti_contributions


@dataclass(frozen=True)
class ALTILogitReport(AttributionReport):
    """Of what the logit is the sum: ``attention.sum((0, 2)) + biases.sum(0) + feed_forward.sum(0) + embedding +
    final_bias`` is ``output``.

    Attributes:
        attention: (layer, batch, key), what the keys of each attention call add.
        tracked: (layer, batch, key), the same tracked down to the inputs at the keys: the scores by layer.
        biases: (layer, batch), what b_O and other biases between attention and residual add.
        feed_forward: (layer, batch), what is added to the stream behind attention, up to the next attention call.
        embedding: (batch,), what the stream held before the first call.
        final_bias: (batch,), what the biases of the final norm and the unembedding add.
        output: (batch,), the logit, less the foil's if there is one.
    """

    attention: Tensor = field(default_factory=lambda: torch.zeros(0))
    tracked: Tensor = field(default_factory=lambda: torch.zeros(0))
    biases: Tensor = field(default_factory=lambda: torch.zeros(0))
    feed_forward: Tensor = field(default_factory=lambda: torch.zeros(0))
    embedding: Tensor = field(default_factory=lambda: torch.zeros(0))
    final_bias: Tensor = field(default_factory=lambda: torch.zeros(0))
    output: Tensor = field(default_factory=lambda: torch.zeros(0))


class ALTILogit(InputMethod):
    """What each input adds to a token's logit by way of attention, the layers' mixing taken into account.

    A decoder's last state is a sum: the embedding, what each key adds in each attention call, biases, feed-forward
    parts.  With the final norm held fixed, so is a logit.  A key's part in layer l is shared among the inputs by what
    ALTI says the layers below have mixed into that key (``mixing=False``, "Logit": it is taken for the input at its
    position).  Embedding, biases and feed-forward parts are given to no token: they are the convergence delta.

    Args:
        forward_func: a Hugging Face decoder, any module, ``HFForward`` or any function that runs one and gives logits.
        mixing: whether parts are tracked through the layers below.

    How the logits are read off the last state (by any norm, unembedding, scale or soft cap) is seen from what the model
    did behind it, once more; where that cannot be (it writes over tensors), the model runs twice.  Layers are pre-norm;
    with a norm behind the residual a logit is no sum of parts.

    Source: Ferrando et al. (2023), "Explaining How Transformers Use Context to Build Predictions", sections 3 and 4,
    https://arxiv.org/abs/2305.12535.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> config = GPT2Config(vocab_size=20, n_embd=8, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=1)
        >>> model, ids = GPT2LMHeadModel(config).eval(), torch.tensor([[3, 4, 5, 6]])
        >>> scores, delta = ALTILogit(model).attribute(ids, target=(7, 8), return_convergence_delta=True)
        >>> logits = model(ids).logits[:, -1]
        >>> torch.allclose(scores.sum(1) + delta, logits[:, 7] - logits[:, 8], atol=1e-5)
        True
    """

    explains = "target"
    signed = True
    reads_block: ClassVar[bool] = True

    def __init__(self, forward_func: Callable[..., Any], *, mixing: bool = True) -> None:
        Attribution.__init__(self, forward_func)
        self.mixing = bool(mixing)
        self.report: ALTILogitReport = ALTILogitReport()

    @classmethod
    def get_name(cls) -> str:
        """The name as its authors write it, in two words."""
        return "ALTI Logit"

    @property
    def multiplies_by_inputs(self) -> bool:
        """A share is a vector times a gradient."""
        return True

    def has_convergence_delta(self) -> bool:
        """Scores and what is no token's sum to the logit."""
        return True

    def target_at(self, row: int, token: int) -> Any:
        """The token alone: the row is told by the position."""
        return token

    @captum_attribute_with_delta
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Any = None,
        additional_forward_args: Any = None,
        *,
        position: PositionType = None,
        return_convergence_delta: bool = False,
        mixers_as_identity: bool = False,
    ) -> Any:
        """What each input position adds to the logit of a token, or to its lead over another.

        Args:
            inputs: what ``forward_func`` takes first, batch first: ids (batch, position), vectors (batch, position,
                model) or a gate (batch, position).
            target: a token's id, or (token, foil): why the one and not the other; for all examples, or a list with one
                for each.
            additional_forward_args: what ``forward_func`` takes after ``inputs``, as in Captum.
            position: the row whose logits are explained: None for the last real token, unless
                ``HFForward(position=...)`` says otherwise; an integer, or one per example.
            return_convergence_delta: also return the output minus the sum of the scores, (batch,).
            mixers_as_identity: compose layers as if what mixed positions between them had not.

        Returns:
            Signed scores in the units of the logits, a tensor for a tensor and a tuple for a tuple, shaped as
            ``inputs``: (batch, position).  float64 for models in float64, else float32; detached, contiguous, on the
            input's device; 0 at padding.  With ``return_convergence_delta``, (scores, delta).

        Raises:
            TypeError: for float token ids, or targets that are neither tokens nor pairs.
            ValueError: if there is no target, a token is not in the vocabulary, the model is no decoder or not
                pre-norm, a block cannot be read, or the logits are read off several rows.
            NotFrozenError: a ValueError, if what stands behind the last block cannot be held fixed.
            InexactCaptureError: if an attention call cannot be read exactly.
        """
        given, extras = one_input("ALTILogit", inputs), extra_arguments(additional_forward_args)
        if position is None:
            position = position_given(self.forward_func, extras)
        [scores], [delta] = self._explained(given, extras, [target], [position], mixers_as_identity)
        answer = (scores,) if is_tuple(inputs) else scores
        return (answer, delta) if return_convergence_delta else answer

    @takes_encodings
    def attribute_each(
        self,
        inputs: Tensor,
        targets: Sequence[Any] | None = None,
        positions: Sequence[int] | None = None,
        additional_forward_args: Any = None,
    ) -> Tensor:
        """Several logits, (target, batch, position), each at its own row, of one reading of the model."""
        targets = self._several(targets)
        rows: Sequence[PositionType] = [None] * len(targets) if positions is None else positions
        given = one_input("ALTILogit", inputs)
        scores, _ = self._explained(given, extra_arguments(additional_forward_args), targets, rows, False)
        return torch.stack(scores)

    def _explained(
        self, given: Tensor, extras: tuple[Any, ...], targets: Sequence[Any], positions: Sequence[PositionType],
        mixers_as_identity: bool,
    ) -> tuple[list[Tensor], list[Tensor]]:  # fmt: skip
        """The scores of each target and its delta."""
        if any(target is None for target in targets):
            raise ValueError("ALTILogit explains the logit of a token: give target=, its id, or (token, foil).")
        pairs = [token_pairs("ALTILogit", target, len(given)) for target in targets]
        paths = TrackedLogitParts() if self.mixing else LogitParts()
        ones = Rows(torch.ones(len(given), 1))
        reduction = Reduction("ALTILogit", paths, ones, None, None, given.device, mixers_as_identity)
        ran = _Run()
        self._read_blocks(reduction, given, extras, positions, ran)
        reduction.conclude()
        rows = paths.maps[-1].rows if paths.maps else torch.zeros(len(given), 0, dtype=torch.long)
        readouts = self._read_out(paths, given, extras, rows, pairs, ran) if paths.maps else []
        gradients = _at(readouts, rows)
        if paths.maps:
            paths.settle(gradients)
        scores, deltas = [], []
        for number in range(len(targets)):
            paths.row = number
            found = reduction.answer(0, given)
            report = reduction.report((found.left_out,))
            self.report = _report(report, paths, readouts[number], gradients[:, number])
            scores.append(finished(spread(found.scores.to(paths.dtype), given, found.grid), given))
            left = readouts[number].output.to(paths.dtype) - found.scores.sum(1).to(paths.dtype)
            deltas.append(finished(left, given))
        return scores, deltas

    def _read_blocks(
        self, reduction: Reduction, given: Tensor, extras: tuple[Any, ...], positions: Sequence[PositionType],
        ran: _Run,
    ) -> None:  # fmt: skip
        """Give the reduction the map of each call."""
        def take(record: AttentionRecord) -> None:
            if reduction.note(record) is not None:
                reduction.add_made(lambda: self._map(record, positions, is_text=given.ndim == 2))

        def told(recorded: Recorded, output: Any) -> None:
            reduction.explains(None)(recorded, output)

        with torch.no_grad(), ran.tail:
            ran.output = self._forward((given,), extras, take, reduction.skip, on_output=told, chain=reduction.composes)

    def _map(self, record: AttentionRecord, positions: Sequence[PositionType], is_text: bool) -> RowMap | LaterRowMap:
        """A call's map, and its record at the rows that the positions are."""
        _check_pre_norm(record)
        text = rows_of_text(record.queries, is_text)
        rows = _rows(record, positions, text)
        told: dict[str, Any] = {"rows": rows, "queried": record.shape[2], "text": text}
        row = without_padding(at_rows(record, rows.to(record.device)))
        later = LaterMap.of(record, alti_contributions, larger=ALTI.larger_blocks) if self.mixing else None
        if later is not None:
            return LaterRowMap(**vars(later), row=row, **told)
        scores = measured(record, alti_contributions) if self.mixing else torch.zeros_like(row.weights[:, 0])
        return RowMap(**vars(call_map(record, scores)), row=row, **told)

    def _read_out(
        self, paths: LogitParts, given: Tensor, extras: tuple[Any, ...], rows: Tensor,
        pairs: Sequence[Sequence[tuple[int, int | None]]], ran: _Run,
    ) -> list[Readout]:  # fmt: skip
        """How each logit is read off the last state of the stream."""
        last, length, text = paths.maps[-1].row, paths.maps[-1].queried, paths.maps[-1].text
        assert last is not None
        state = block_of_decoder("ALTILogit", last).behind
        of_input = rows if text is None else (rows[..., None] == text).int().argmax(-1)

        def logits(output: Any) -> list[Tensor]:
            found = output_tensor(output)
            cut = text is not None and found is not None and found.ndim == 3 and found.shape[1] == len(text)
            at, rows_of_output = (of_input, len(text)) if text is not None and cut else (rows, length)
            each = enumerate(pairs)
            return [logits_of("ALTILogit", output, at[:, number], pair, rows_of_output) for number, pair in each]

        with torch.no_grad(), ran.tail:
            seen = Seen(logits(ran.output), ran.tail)
        with outside_inference_mode((given, extras, state, rows)) as (plain, more, state, rows):

            def explain() -> list[Tensor]:
                return logits(run_forward(self.forward_func, (plain,), more))

            with readable("ALTILogit", self.forward_func, (plain,), more):
                readouts = read_out(explain, state, rows, length, seen)
        for number, readout in enumerate(readouts):
            _check_row(readout, rows[:, number], text)
        return readouts


@dataclass(eq=False)
class _Run:
    """The run in which blocks were read: what it did last, and what it gave."""

    tail: Tail = field(default_factory=Tail)
    output: Any = None


def _check_pre_norm(record: AttentionRecord) -> None:
    block = block_of_decoder("ALTILogit", record)
    if block.norm is not None or block.second_norm is not None or block.feed_forward == "several":
        raise ValueError(
            f"ALTILogit explains pre-norm decoders, whose last state is a sum of parts, but a norm stands behind the "
            f"residual of attention call {record.call.name!r} (post-norm). DecompX takes it."
        )


def _rows(record: AttentionRecord, positions: Sequence[PositionType], text: Tensor | None) -> Tensor:
    """The row of each answer among the record's queries, (batch, answer).

    Raises:
        ValueError: for positions of an input of which the call asks for some alone.
    """
    batch, _, query, _ = record.shape
    known, mask = record.queries, None if record.query_mask is None else record.query_mask.cpu()
    partial = known is not None and known.all_inputs and not known.count_themselves and text is None
    if known is not None and partial and any(position is not None for position in positions):
        raise ValueError(
            f"ALTILogit: attention call {record.call.name!r} asks for positions {known.index.tolist()} of the input "
            "alone, and position= counts all. Leave it out: the last of them is explained."
        )
    length = query if text is None else len(text)
    real = mask if mask is None or text is None else mask[:, text]
    rows = torch.stack([resolve_position(row, real, batch, length, causal=True) for row in positions], dim=1)  # type: ignore[arg-type]
    return rows if text is None else text[rows]


def _check_row(readout: Readout, rows: Tensor, text: Tensor | None) -> None:
    """That a logit is read off the row that is explained, and no other."""
    read = (readout.gradient != 0).any(-1).cpu()
    expected = torch.zeros_like(read).scatter_(1, rows[:, None].cpu(), True)
    if bool((read & ~expected).any()):
        example = int((read & ~expected).any(1).nonzero()[0])
        positions = {} if text is None else {row: position for position, row in enumerate(text.tolist())}
        found = read[example].nonzero()[:, 0].tolist()
        beside = [row for row in found if text is not None and row not in positions]
        others = f" and {len(beside)} beside the input's" if beside else ""
        raise ValueError(
            f"ALTILogit: the logits of example {example} are read off rows "
            f"{[positions.get(row, row) for row in found if row not in beside]}{others}, and row "
            f"{positions.get(int(rows[example]), int(rows[example]))} was to be explained: give position=, the one row "
            "that they are read off."
        )


def _at(readouts: Sequence[Readout], rows: Tensor) -> Tensor:
    """Each gradient at its row, (batch, answer, model)."""
    if not readouts:
        return torch.zeros(0)
    batch = torch.arange(len(rows), device=readouts[0].gradient.device)
    at = rows.to(batch.device)
    return torch.stack([readout.gradient[batch, at[:, n]] for n, readout in enumerate(readouts)], dim=1)


def _report(report: AttributionReport, paths: LogitParts, readout: Readout, gradient: Tensor) -> ALTILogitReport:
    """Of what the logit that is asked for is the sum; gradient is (batch, model)."""
    number, gradient = paths.row, gradient.double()
    blocks = [block_of_decoder("ALTILogit", one.row) for one in paths.maps if one.row is not None]
    states = [[state[:, number].double() for state in (b.residual, b.output, b.behind)] for b in blocks]
    after = [*(residual for residual, *_ in states[1:]), states[-1][2]]

    def along(state: Tensor) -> Tensor:
        return (state * gradient).sum(-1).cpu()

    attention = paths.parts[:, number].transpose(0, 1).cpu()
    return ALTILogitReport(
        **vars(report),
        attention=attention,
        tracked=paths.tracked[:, number].transpose(0, 1).cpu(),
        biases=torch.stack([along(output - residual) for residual, output, _ in states]) - attention.sum(2),
        feed_forward=torch.stack([along(x - output) for x, (_, output, _) in zip(after, states, strict=True)]),
        embedding=along(states[0][0]),
        final_bias=readout.bias.double().cpu(),
        output=readout.output.double().cpu(),
    )
