"""Signed contributions of every token to one output, through the whole model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from captum_norm.attr._base import InputMethod, nothing
from captum_norm.attr._captum import Attribution, as_tuple, extra_arguments, is_tuple, run_forward
from captum_norm.attr._contrast import selected_contrast
from captum_norm.attr._encoding import captum_attribute_with_delta, takes_encodings
from captum_norm.attr._examples_first import examples_first
from captum_norm.attr._forward import distinct, models_in, outside_inference_mode, readable, refuse_fused_path
from captum_norm.attr._maps import SequenceName
from captum_norm.attr._placing import finished, spread
from captum_norm.attr._report import AttributionReport
from captum_norm.attr._unread import nothing_seen, of_frames, refuse_opaque
from captum_norm.capture import Opaque, Recorded
from captum_norm.linear import (
    ActivationType,
    Conventions,
    NotFrozenError,
    NothingMixedError,
    ProductType,
    TokenContributions,
    contributions_to_each,
    shared_contributions,
)
from captum_norm.operations.sharded import what_is_split

# Rules that weigh a bias by the parts it is added to.
_CARRIED = ("absdot", "norm", "abssim", "dot")

BiasType = Literal["token", "none", "equal", "cls", "absdot", "norm", "abssim", "dot"]


@dataclass(frozen=True)
class DecompXReport(AttributionReport):
    """How the last call of ``attribute`` added up; it has no certificates, as operations are read and not calls.

    Attributes:
        left_out: what hidden states that are no input add (a class token, a prefix that was not among the inputs),
            (batch,).
        bias: what the biases add to the output, (batch,); in the scores already for rules that share it out.
        error, tolerance: the distance between the output and the sum of all shares, relative to their size, and how
            much of it rounding explains.
    """

    left_out: Tensor | None = None  # type: ignore[assignment]  # of the output, not of an input's row
    bias: Tensor | None = None
    error: float = 0.0
    tolerance: float = 0.0


class DecompX(InputMethod):
    """How much each token adds to or takes from the output ``target``: shares that sum to it, with that of the biases.

    Every part of the model is held fixed at this input: attention weights, 1/sigma of norms, act(z)/z of activations,
    gates and routing.  What is left is linear in the tokens' vectors and the biases, so the output is a sum of one
    share for each, and a token's share is followed through all layers to the output.

    A token's vector is all that the model computes from it alone: the embeddings of word, position and type, their
    norm, and in the first layer its values with b_V.  Such tensors are found by following positions.

    Args:
        forward_func: a Hugging Face model, any module, ``HFForward`` or any function that runs a model.
        bias: whose the biases are.  ``"token"`` (their share stays by itself: it is the convergence delta), ``"none"``
            (left out; the scores are the same), ``"equal"`` (the same part for each token that the output depends on),
            ``"cls"`` (all for the first such token): one forward and one backward pass.  By how much each token's part
            of the hidden state resembles the bias, at each place where one is added: ``"absdot"`` (|<x, b>|, the
            paper's), ``"norm"``, ``"abssim"`` (|cos|), ``"dot"`` (signed, ill-conditioned): every token's part is
            carried through the model, at about ``tokens`` times a forward pass and its memory.
        activation: the line that stands for an activation: ``"ZO"`` act(z)/z, ``"LA"`` the tangent, its intercept being
            a bias, ``"ReLU"`` z where z > 0.
        product: of a gated activation, act(g) u: ``"half"`` of it to each factor, or ``"gate"``: act(g) is held fixed.
        max_memory: bytes that the carried parts may take, for the rules that carry them.

    Raises:
        ValueError: for an unknown rule or word.

    Source: Modarressi et al. (2023), "DecompX: Explaining Transformers Decisions by Propagating Token Decomposition",
    section 3, https://arxiv.org/abs/2306.02873.  One backward pass gives what their code propagates wherever biases are
    not weighed by the parts themselves.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        >>> encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).double().eval()
        >>> def model(x):  # eight classes, read off the first position
        ...     return encoder(x)[:, 0]
        >>> x = torch.randn(1, 3, 8, dtype=torch.float64)
        >>> scores, of_biases = DecompX(model).attribute(x, target=5, return_convergence_delta=True)
        >>> torch.allclose(scores.sum((1, 2)) + of_biases, model(x)[:, 5])
        True
    """

    explains = "target"
    signed = True
    certifies_calls = False

    def __init__(
        self, forward_func: Callable[..., Any], *, bias: BiasType = "token", activation: ActivationType = "ZO",
        product: ProductType = "half", max_memory: int = 4 << 30,
    ) -> None:  # fmt: skip
        Attribution.__init__(self, forward_func)
        if bias not in get_args(BiasType):
            raise ValueError(f"bias should be one of {', '.join(map(repr, get_args(BiasType)))}, got {bias!r}.")
        self.bias = bias
        self.conventions = Conventions(activation, product)
        self.max_memory = max_memory
        self.report: DecompXReport = DecompXReport()

    @classmethod
    def get_name(cls) -> str:
        """The name as its authors write it."""
        return "DecompX"

    @property
    def multiplies_by_inputs(self) -> bool:
        """A share is a vector times a gradient."""
        return True

    def has_convergence_delta(self) -> bool:
        """Scores and the biases' share sum to the output."""
        return True

    @captum_attribute_with_delta
    @examples_first
    def attribute(
        self, inputs: Tensor | tuple[Tensor, ...], target: Any = None, additional_forward_args: Any = None, *,
        return_convergence_delta: bool = False,
    ) -> Any:  # fmt: skip
        """What each input position adds to the output ``target``.

        Args:
            inputs: what ``forward_func`` takes first, batch first: ids (batch, position), vectors (batch, position,
                model), a gate (batch, position) or pixels (batch, channel, height, width); or a tuple of such.  For an
                encoder-decoder, ``(input_ids, decoder_input_ids)``: the tokens of both have shares; those of input_ids
                alone leave the prefix's to the delta.
            target: which output is explained, as in Captum: a class, one for each example, or a tuple of indices where
                the output has more axes.  For the next token, ``HFForward(model, position=...)`` takes the row.  One
                more index is a foil: (class, foil), one for each example in a list, or (row, class, foil): why the
                first and not the second, the shares of the difference.
            additional_forward_args: what ``forward_func`` takes after ``inputs``, as in Captum.
            return_convergence_delta: also return the output minus the sum of the scores, (batch,).

        Returns:
            Signed scores in the units of the output, one tensor for a tensor and a tuple for a tuple, shaped as
            ``inputs``.  Where an input holds several numbers per position (vectors, pixels), a position's score is
            shared evenly by them.  float64 for models in float64, else float32; detached, contiguous, on the input's
            device; 0 at padding.  With ``return_convergence_delta``, (scores, delta): the share of what is no input,
            which is that of the biases unless the rule shares it out, and then 0.

        Raises:
            TypeError: for float token ids.
            ValueError: if ``target`` is missing where the output has several numbers per example, or if an input's
                positions do not reach the output.
            NotFrozenError: a ValueError, if an operation cannot be held fixed, naming it and its module.
            AssertionError: Captum's, if ``target`` does not fit the output.
        """
        given = distinct(as_tuple(inputs))
        extras = extra_arguments(additional_forward_args)
        [(scores, delta)] = self._explained(given, extras, [target])
        answer = scores if is_tuple(inputs) else scores[0]
        return (answer, finished(delta, given[0])) if return_convergence_delta else answer

    @takes_encodings
    def attribute_each(
        self, inputs: Tensor, targets: Sequence[Any] | None = None, positions: Sequence[int] | None = None,
        additional_forward_args: Any = None,
    ) -> Tensor:  # fmt: skip
        """Several outputs, (target, batch, position), of one forward pass, with a backward pass for each.

        Positions are not looked at, as an output is followed back from where its target stands; rules that carry parts
        run anew for each.
        """
        explained = self._explained((inputs,), extra_arguments(additional_forward_args), self._several(targets))
        return torch.stack([scores for (scores,), _ in explained])

    def _explained(
        self, given: tuple[Tensor, ...], extras: tuple[Any, ...], targets: Sequence[Any]
    ) -> list[tuple[tuple[Tensor, ...], Tensor]]:
        """The scores of each input and the delta, for each target."""
        with outside_inference_mode((given, extras)) as (plain, more):
            plain = tuple(tensor.detach() for tensor in plain)
            return [self._shares(found, given) for found in self._contributions(plain, more, targets)]

    def _shares(self, found: TokenContributions, given: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], Tensor]:
        title = type(self).__name__
        sequences = [_sequence_of(title, found, index, tensor) for index, tensor in enumerate(given)]
        by_sequence = _with_biases(found, self.bias, sequences)
        scores = tuple(
            finished(_shaped(by_sequence[sequence], found, sequence, like), like)
            for sequence, like in zip(sequences, given, strict=True)
        )
        delta = found.output - torch.stack([by_sequence[sequence].sum(1) for sequence in sequences]).sum(0)
        of_inputs = torch.stack([found.tokens[sequence].sum(1) for sequence in sequences]).sum(0)
        left_out = found.output - found.bias - of_inputs
        self.report = DecompXReport(
            left_out=left_out.cpu(), bias=found.bias.cpu(), error=found.error, tolerance=found.tolerance
        )
        return scores, delta

    def _contributions(
        self, inputs: tuple[Tensor, ...], extras: tuple[Any, ...], targets: Sequence[Any]
    ) -> list[TokenContributions]:
        title = type(self).__name__

        def explain(targets: Sequence[Any]) -> list[Tensor]:
            output = run_forward(self.forward_func, inputs, extras)
            return [selected_contrast(output, target, title) for target in targets]

        def carried(target: Any, tokens: tuple[Tensor, ...]) -> TokenContributions:
            return shared_contributions(
                lambda: explain([target])[0], tokens, self.conventions, self.bias, self.max_memory
            )

        with readable(title, self.forward_func, inputs, extras) as tokens:
            try:
                if self.bias in _CARRIED:
                    found = [carried(target, tokens) for target in targets]
                else:
                    found = contributions_to_each(partial(explain, targets), tokens, self.conventions)
            except NothingMixedError:
                split = what_is_split(models_in(self.forward_func))
                raise ValueError(f"{title}: {split}." if split else nothing_seen(title)) from None
        if any(one.of_unseen for one in found):
            self._refuse_unseen(inputs, extras, targets)
        for target, contributions in zip(targets, found, strict=True):
            chosen = partial(selected_contrast, target=target, caller=title)
            refuse_fused_path(title, self.forward_func, inputs, extras, chosen, contributions.output)
        if any(one.overwrote for one in found):
            self._refuse_other_outputs(inputs, extras, targets, found)
        return found

    def _refuse_other_outputs(
        self, inputs: tuple[Tensor, ...], extras: tuple[Any, ...], targets: Sequence[Any],
        found: Sequence[TokenContributions],
    ) -> None:  # fmt: skip
        """Refuse shares of another output than the model's own.

        Shares that sum to the frozen run's output say nothing of an operation that this run did otherwise.  What writes
        in place is where that may go unseen, since other tensors may read the same memory.
        """
        title = type(self).__name__
        with torch.no_grad():
            output = run_forward(self.forward_func, inputs, extras)
        for target, contributions in zip(targets, found, strict=True):
            own, frozen = selected_contrast(output, target, title).to(contributions.output), contributions.output
            error = float((own - frozen).abs().sum()) / max(contributions.size, torch.finfo(own.dtype).tiny)
            if not error <= contributions.tolerance:
                worst = int((own - frozen).abs().argmax())
                raise NotFrozenError(
                    f"{title}: the output is {float(own[worst]):.4g}, and {float(frozen[worst]):.4g} while the model "
                    f"runs in its frozen form, off by {error:.1e} of all shares (tolerance "
                    f"{contributions.tolerance:.0e}): what it writes in place was not followed, or it gives something "
                    "else at each call (dropout, a cache that grows). Call model.eval(), and write into new tensors."
                )

    def _refuse_unseen(self, inputs: tuple[Tensor, ...], extras: tuple[Any, ...], targets: Sequence[Any]) -> None:
        """Refuse if what is explained rests on a part that cannot be looked into, which looked like a constant."""
        title = type(self).__name__
        parts: list[Opaque] = []

        def told(recorded: Recorded, output: Any) -> None:
            for target in targets:
                explained = selected_contrast(output, target, title)
                parts.extend(recorded.answer(explained, lambda tensor: tensor).opaque)

        with torch.no_grad():
            self._forward(inputs, extras, nothing, nothing, on_output=told)
        if parts:
            refuse_opaque(title, parts, self._opaque_again(inputs, extras))


def _sequence_of(title: str, found: TokenContributions, index: int, like: Tensor) -> SequenceName:
    """The sequence that an input's positions are: its own, or the one that was embedded from within."""
    if index in found.tokens:
        return index
    # A gate or vectors made inside forward_func: tokens were embedded that are no input by themselves, but as many.
    named = [s for s, t in found.tokens.items() if isinstance(s, str) and like.ndim > 1 and t.shape == like.shape[:2]]
    if len(named) == 1:
        return named[0]
    seen = ", ".join(f"{sequence!r} {tuple(scores.shape)}" for sequence, scores in found.tokens.items())
    raise ValueError(
        f"{title}: inputs[{index}], {like.dtype} {tuple(like.shape)}, is read by no attention call that bears on the "
        f"output. Sequences that are: {seen}. Masks and types belong into additional_forward_args; an encoder-decoder "
        f"takes its decoder_input_ids by name (HFForward, or a function that names them).{of_frames(like)}"
    )


def _with_biases(found: TokenContributions, bias: str, sequences: list[SequenceName]) -> dict[SequenceName, Tensor]:
    """The scores with the biases' share as the rule has it."""
    scores = dict(found.tokens)
    if bias == "equal":
        count = torch.stack([found.reached[sequence].sum(1) for sequence in dict.fromkeys(sequences)]).sum(0)
        part = found.bias / count.clamp_min(1)
        for sequence in dict.fromkeys(sequences):
            scores[sequence] = scores[sequence] + part[:, None] * found.reached[sequence]
    elif bias == "cls":
        reached = found.reached[sequences[0]]
        first = torch.nn.functional.one_hot(reached.int().argmax(1), reached.shape[1])
        scores[sequences[0]] = scores[sequences[0]] + found.bias[:, None] * first
    return scores


def _shaped(scores: Tensor, found: TokenContributions, sequence: SequenceName, like: Tensor) -> Tensor:
    grid = found.anchors[sequence].grid
    return spread(scores, like, grid if len(grid) > 1 or like.shape[1] != scores.shape[1] else None)
