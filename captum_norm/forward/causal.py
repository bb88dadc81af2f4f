"""Does a model look ahead?  Measured on one example: does its first row depend on any later embedding?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from captum_norm.forward.embedding import EmbeddingSites, VectorChange

RunModel = Callable[[dict[str, Any]], Tensor]


def is_causal(run: RunModel, keywords: dict[str, Any], embedded: str, sites: EmbeddingSites, real: Tensor) -> bool:
    """Whether the first real row does not depend on the tokens after it: its gradient to each of them is exactly zero.

    The gradient tells in every dtype; comparing two outputs does not, since what is small may be rounding (a mixture
    of experts) or an effect (a small model in bfloat16).

    Args:
        run: from the model's keywords to its output, (batch, sequence, class).
        keywords: the model's keywords.
        embedded: the name of the input in ``keywords``: vectors if it is ``inputs_embeds``, else what ``sites`` embed.
        sites: the modules that may embed it.
        real: (batch, sequence) bool, True at real tokens; some example must have two.

    Raises:
        ValueError: if no gradient can be taken.
    """
    # A thread of its own: what surrounds the call (a recording, no_grad, inference_mode) must neither see this run nor
    # bear on it.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(_first_row_stands_alone, run, keywords, embedded, sites, real).result()


def _first_row_stands_alone(
    run: RunModel, keywords: dict[str, Any], embedded: str, sites: EmbeddingSites, real: Tensor
) -> bool:
    keywords, real = _one_example(keywords, real)
    leaves: list[Tensor] = []

    def leaf(module: nn.Module, output: Tensor) -> Tensor:
        leaves.append(output.detach().clone().requires_grad_())
        return leaves[-1].clone()  # some models add to their embeddings in place

    with private_randomness(sites.model):
        if embedded == "inputs_embeds":
            output = run({**keywords, embedded: leaf(sites.model, keywords[embedded])})
        else:
            output = _run_with(leaf, run, keywords, keywords[embedded], sites)
    examples, first = torch.arange(len(real), device=output.device), real.int().argmax(1).to(output.device)
    gradients = _gradients(output[examples, first], leaves)
    later = torch.arange(real.shape[1], device=output.device) > first[:, None]
    return not any(bool(gradient[later.to(gradient.device)].any()) for gradient in gradients)


def _run_with(
    leaf: VectorChange, run: RunModel, keywords: dict[str, Any], main: Tensor, sites: EmbeddingSites
) -> Tensor:
    try:
        with sites.changed(main, leaf):
            return run(keywords)
    except ValueError as error:
        raise _unknown(error) from error


def _gradients(row: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    # A random direction: the plain sum of a layer-normed row is constant, its gradient zero in every model.
    direction = torch.randn(row.shape, generator=torch.Generator().manual_seed(0)).to(row)
    try:
        found = torch.autograd.grad((row * direction).sum(), leaves, allow_unused=True)
    except RuntimeError as error:  # kernels without a backward
        raise _unknown(error) from error
    return [gradient for gradient in found if gradient is not None]


def _unknown(error: Exception) -> ValueError:
    return ValueError(
        "HFForward: position=None is the last real token of a causal model and the first of any other, but whether "
        f"this model is causal cannot be measured ({error}). Give position: -1, 0, or one index per example."
    )


def _one_example(keywords: dict[str, Any], real: Tensor) -> tuple[dict[str, Any], Tensor]:
    """The example with the most real tokens; all of them where some input is not one per example."""
    batch, longest = len(real), int(real.sum(1).argmax())
    tensors = {name: value for name, value in keywords.items() if isinstance(value, Tensor)}
    cut = slice(longest, longest + 1) if all(v.ndim and len(v) == batch for v in tensors.values()) else slice(None)
    return {**keywords, **{name: value[cut].clone() for name, value in tensors.items()}}, real[cut].clone()


@contextmanager
def private_randomness(model: nn.Module) -> Iterator[None]:
    """The same random numbers in each run under this; afterwards the generators are as they were."""
    devices = {p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(sorted(devices)):
        torch.manual_seed(0)
        yield
