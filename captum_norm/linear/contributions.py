"""What each token, the biases, and what is no token add to one output: one backward pass through the frozen model.

    output = sum over tokens <x_k, d output / d x_k>  +  sum over biases <b, d output / d b>

exactly, because the frozen model is linear in its tokens' vectors x_k and biases b.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from captum_norm.functional.decompx import BiasRule
from captum_norm.linear.backward import BackwardRun
from captum_norm.linear.frozen import Conventions, NotFrozenError, NothingMixedError
from captum_norm.linear.parts import PartSources, SharedRun
from captum_norm.linear.sources import Leaf, TokenSources
from captum_norm.operations.places import Anchor, Source
from captum_norm.operations.precision import at_least_float32, tolerance


@dataclass(frozen=True, eq=False)
class TokenContributions:
    """How an output is made up.

    Attributes:
        output: what is explained, (batch,).
        tokens: for each sequence that tokens come from, its contributions (batch, position), signed, in the units of
            the output.  Keys are indices among the inputs, or names of sequences that are no input.
        reached: likewise, (batch, position) bool: whether the output depends on the token at all.
        anchors: likewise, where its positions begin to count.
        bias: the share of all biases, (batch,).
        left_out: the share of hidden states that are no token of an input, such as a class token, (batch,).
        largest: bytes of the largest tensor that went through in linear form.
        error, tolerance: how far all shares, biases counted by themselves, are from the output, relative to the sum of
            their absolute values; and how far rounding may take them.
        size: that sum, over all examples.
        of_unseen: whether something was taken in that no seen operation made, and that is no parameter: a constant, or
            the result of a part that cannot be looked into.
        overwrote: whether the model wrote in place into what depends on tokens, or such a state into anything else.
    """

    output: Tensor
    tokens: dict[Source, Tensor]
    reached: dict[Source, Tensor]
    anchors: dict[Source, Anchor]
    bias: Tensor
    left_out: Tensor
    largest: int
    error: float
    tolerance: float
    size: float
    of_unseen: bool = False
    overwrote: bool = False


def token_contributions(
    explain: Callable[[], Tensor], inputs: Sequence[Tensor], conventions: Conventions
) -> TokenContributions:
    """Run a model once forwards and once backwards in its frozen form.

    Args:
        explain: runs the model and returns what is explained of its output, (batch,).
        inputs: the tensors whose positions are the tokens, as ``explain`` passes them on.
        conventions: how what is not linear is held fixed.

    Raises:
        NothingMixedError: if no positions are mixed.
        NotFrozenError: if an operation has no linear form, if the output depends on no token, or if the shares do not
            add up to the output.
    """
    [contributions] = contributions_to_each(lambda: [explain()], inputs, conventions)
    return contributions


def contributions_to_each(
    explain: Callable[[], Sequence[Tensor]], inputs: Sequence[Tensor], conventions: Conventions
) -> list[TokenContributions]:
    """Several outputs of one forward pass, with a backward pass for each.

    Args:
        explain: runs the model and returns what is explained of its output, each (batch,).
        inputs, conventions: as for :func:`token_contributions`.

    Raises:
        NothingMixedError, NotFrozenError: as :func:`token_contributions`.
    """
    found = _explained(explain, TokenSources(inputs), conventions)
    if found[1].differ:
        found = _explained(explain, TokenSources(inputs, of_the_first=True), conventions)
    run, sources, outputs = found
    return [
        replace(_backwards(*found, number), of_unseen=sources.of_unseen, overwrote=run.overwrote)
        for number in range(len(outputs))
    ]


def _explained(
    explain: Callable[[], Sequence[Tensor]], sources: TokenSources, conventions: Conventions
) -> tuple[BackwardRun, TokenSources, list[Tensor]]:
    run = BackwardRun(conventions, sources)
    with run.running():
        explained = explain()
        if not sources.leaves and sources.mixers:
            raise NotFrozenError(
                f"which token each row is made of is not known: ids are put together by {sources.mixers}. Give the "
                "model ids as it puts them together, or pick them by an index"
            )
        if not sources.leaves or any(sources.place(output) is not None for output in explained):
            raise NothingMixedError("no attention or other mixing of the inputs' positions was seen")
        return run, sources, [run.result(output) for output in explained]


def _backwards(run: BackwardRun, sources: TokenSources, outputs: Sequence[Tensor], number: int) -> TokenContributions:
    """From one of the outputs, (batch,), back to tokens and biases."""
    output = outputs[number]
    if not output.requires_grad:
        raise NotFrozenError(
            "the output does not depend on the inputs in linear form: it is computed without them, or is a softmax or "
            "a sigmoid, which are held fixed: explain the logits."
        )
    leaves = sources.leaves
    inputs = [*(leaf.value for leaf in leaves), run.one]
    keep = number + 1 < len(outputs)
    to_check = not number and len(output) > 1
    try:
        of_inputs = torch.autograd.grad(output.sum(), inputs, retain_graph=keep or to_check, allow_unused=True)
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        raise NotFrozenError(
            "the model overwrites a tensor that its own result is held fixed by, such as a factor of a product "
            f"(x.mul_(y)). Write into a new one (x = x * y). {error}"
        ) from None
    *gradients, bias = (None if gradient is None else gradient.detach() for gradient in of_inputs)
    if to_check:
        refuse_mixed_examples(output, inputs[:-1], gradients, [leaf.examples() for leaf in leaves], run.coarsest)
    with torch.no_grad():
        return _Sum(output.detach(), run.largest, run.coarsest).of(leaves, gradients, bias)


def refuse_mixed_examples(
    output: Tensor, tensors: Sequence[Tensor], gradients: Sequence[Tensor | None], examples: Sequence[Tensor],
    coarsest: torch.dtype = torch.float32,
) -> None:  # fmt: skip
    """Refuse an output of which one example reads another, so that one backward pass cannot tell their shares.

    If none does, and each example's output is weighed by a number of its own, the gradients at its tokens are weighed
    by that number.

    Args:
        output: what is explained, (batch,), its graph retained.
        tensors: what it depends on.
        gradients: of the output's sum with respect to these.
        examples: which example each of their entries belongs to, shaped as they are; -1 for none.
        coarsest: the format with the fewest digits that anything was computed in.

    Raises:
        NotFrozenError: if outputs depend on the tokens of other examples.
    """
    if len(output) < 2:
        return
    # Without a pattern: of evenly spaced weights that in the middle is the mean of all, as if it were read by all.
    weights = (1 + torch.arange(1, len(output) + 1, dtype=torch.float64, device="cpu").mul(0.618034).frac()).to(output)
    weighed = torch.autograd.grad((output * weights).sum(), tensors, retain_graph=True, allow_unused=True)
    for found, gradient, of_example in zip(weighed, gradients, examples, strict=True):
        if found is None or gradient is None or not gradient.numel():
            continue
        of_example = of_example.to(gradient.device)
        expected = gradient * weights.to(gradient)[of_example.clamp(0, len(output) - 1)]
        off = torch.where(of_example < 0, 0, torch.nan_to_num(found - expected)).abs().max()
        # norms may compute in float32, and all of it in less (autocast)
        coarse = max(torch.finfo(dtype).eps for dtype in (gradient.dtype, output.dtype, torch.float32, coarsest))
        if bool((of_example >= len(output)).any()) or off > coarse**0.5 * torch.nan_to_num(expected).abs().max():
            raise NotFrozenError(
                f"axis 0 of what is explained, {tuple(output.shape)}, and of the inputs should count examples, but an "
                "example's output depends on what another one was given. A model that takes its positions first is "
                "explained by a function of the batch: lambda x: model(x.transpose(0, 1)).transpose(0, 1)."
            )


class _Sum:
    """Adds up shares per token."""

    def __init__(self, output: Tensor, largest: int, coarsest: torch.dtype) -> None:
        self.largest = largest
        self.dtype = at_least_float32(output.dtype)
        self.output = output.to(self.dtype)
        self.tolerance = max(tolerance("contributions", dtype) for dtype in (output.dtype, coarsest))
        self.tokens: dict[Source, Tensor] = {}
        self.reached: dict[Source, Tensor] = {}
        self.anchors: dict[Source, Anchor] = {}
        self.left_out = torch.zeros_like(self.output)
        self.size = 0.0

    def of(self, leaves: Sequence[Leaf], gradients: Sequence[Tensor | None], bias: Tensor | None) -> TokenContributions:
        for leaf, gradient in zip(leaves, gradients, strict=True):
            if gradient is not None:
                self._add(leaf, gradient)
        if not self.tokens:
            counts = ", ".join(map(str, sorted({leaf.anchor.shape[0] for leaf in leaves})))
            raise NotFrozenError(
                f"axis 0 of what is explained counts {len(self.output)}, and of the inputs {counts}: "
                "it adds up several examples (a sum or mean over the batch), or holds them in one row (pictures packed "
                "into one sequence), and which shares are of which example is not known. Explain one number for each "
                "example (a sum has the same shares), or give one example at a time."
            )
        tokens = torch.stack([scores.sum(1) for scores in self.tokens.values()]).sum(0).expand_as(self.output)
        of_biases = self.output - tokens - self.left_out
        counted = 0.0 if bias is None else float(bias)
        self.size += abs(counted) + float(self.output.abs().sum())
        error = abs(float(of_biases.sum()) - counted) / max(self.size, torch.finfo(self.dtype).tiny)
        if not error <= self.tolerance:
            raise NotFrozenError(
                f"the frozen model does not add up: tokens {float(tokens.sum()):.4g} and biases {counted:.4g} are off "
                f"from the output {float(self.output.sum()):.4g} by {error:.1e} of their size (tolerance "
                f"{self.tolerance:.0e}). Some operation was not seen: a custom autograd function, a fused kernel, or "
                "a checkpoint with use_reentrant=True (model.gradient_checkpointing_disable() switches it off)."
            )
        return TokenContributions(
            self.output,
            self.tokens,
            self.reached,
            self.anchors,
            of_biases,
            self.left_out,
            self.largest,
            error,
            self.tolerance,
            self.size,
        )

    def _add(self, leaf: Leaf, gradient: Tensor) -> None:
        # Where the gradient is zero (padding), the hidden state may be anything, NaN included.
        entries = torch.where(gradient == 0, 0, leaf.value.detach().to(self.dtype) * gradient.to(self.dtype))
        self.size += float(entries.abs().sum())
        if leaf.anchor.shape[0] not in (1, len(self.output)):
            self._add_of_no_example(leaf, entries)
            return
        scores = leaf.by_position(entries).to(self.output.device)
        reached = leaf.by_position((gradient != 0).to(self.dtype)).to(self.output.device) > 0
        self.left_out = self.left_out + leaf.left_out(entries).to(self.output.device)
        if leaf.source in self.tokens:
            if scores.shape != self.tokens[leaf.source].shape:
                raise NotFrozenError(
                    f"inputs[{leaf.source}] is read in {scores.shape[1]} parts at one place and in "
                    f"{self.tokens[leaf.source].shape[1]} at another, whose shares cannot be told of each other. "
                    "AttentionNorm(..., call=) and attention_maps read each by itself."
                )
            scores, reached = scores + self.tokens[leaf.source], reached | self.reached[leaf.source]
        self.tokens[leaf.source], self.reached[leaf.source] = scores, reached
        self.anchors[leaf.source] = leaf.anchor

    def _add_of_no_example(self, leaf: Leaf, entries: Tensor) -> None:
        """What is counted otherwise than the examples, such as the patches of all pictures in one row."""
        if len(self.output) > 1:
            raise NotFrozenError(
                f"{leaf.source!r} holds {leaf.anchor.shape[0]} rows for {len(self.output)} examples, and which of them "
                "belong to which example is not known. Give one example at a time."
            )
        self.left_out = self.left_out + entries.sum().to(self.output.device)


def shared_contributions(
    explain: Callable[[], Tensor], inputs: Sequence[Tensor], conventions: Conventions, rule: BiasRule, max_memory: int
) -> TokenContributions:
    """What each token adds to one output where biases are shared among the tokens' parts, which are carried along.

    Args:
        explain, inputs, conventions: as for :func:`token_contributions`, which is run first.
        rule: how a bias is shared among the parts it is added to.
        max_memory: bytes that the parts may take.

    Raises:
        ValueError: if the parts would take more than that.
        NotFrozenError: as :func:`token_contributions`.
    """
    alone = token_contributions(explain, inputs, conventions)
    sources = PartSources(inputs, {source: scores.shape[1] for source, scores in alone.tokens.items()})
    _refuse_too_large(sources.number, alone.largest, max_memory)
    run = SharedRun(conventions, sources, rule)
    with run.running():
        parts = run.result(explain()).to(alone.output.dtype)
    tokens = {source: parts[sources.slots(source, scores.shape[1])].T for source, scores in alone.tokens.items()}
    return replace(alone, tokens=tokens, bias=alone.output - parts.sum(0), left_out=parts[-1].expand_as(alone.output))


# The residual stream, what is added to it, and twice the widest layer, at one time.
_HELD = 4


def _refuse_too_large(number: int, largest: int, max_memory: int) -> None:
    needed = _HELD * number * largest
    if needed > max_memory:
        raise ValueError(
            f"carrying {number} parts through the model takes about {needed / 2**30:.1f} GiB (the largest hidden state "
            f"is {largest / 2**20:.1f} MiB), more than max_memory = {max_memory / 2**30:.1f} GiB. Raise it, shorten "
            'the text, or take bias="token", "none", "equal" or "cls", which need one backward pass.'
        )
