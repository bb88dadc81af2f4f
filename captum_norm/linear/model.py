"""A model or one of its layers as a linear map, for whoever builds the next method.

With attention weights, 1/sigma, act(z)/z, gates and routing held at what they are for some input x, a model is affine,

    y = L(x) + c,

so that y is a sum of one part for each input vector and the constant c of all biases.  :class:`FrozenModel` gives that
map forwards (at other inputs, or part by part) and backwards (what every entry of x adds to a number).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from captum_norm.forward.inputs import ModelInputs, named_inputs, position_sources
from captum_norm.forward.outputs import output_tensor
from captum_norm.linear.backward import BackwardRun
from captum_norm.linear.frozen import ActivationType, Conventions, NotFrozenError, ProductType
from captum_norm.linear.parts import PartsRun
from captum_norm.linear.run import FrozenRun, Start
from captum_norm.linear.start import find_call, find_streams

Target = int | tuple[int, ...] | Callable[[Tensor], Tensor]

# What tensors that are added are called, in parameters and buffers.
_BIASES = ("bias", "beta", "running_mean")


@dataclass(frozen=True, eq=False)
class Contributions:
    """What a number of the output is made of.

    Attributes:
        vectors: what each entry of the input vectors adds, shaped as :attr:`FrozenModel.x` (a tuple where that is one);
            signed, in the units of the output.
        bias: what all biases add, (batch,).
        output: the number itself, (batch,): all ``vectors`` of an example and its ``bias`` sum to it.
        error: how far the biases, counted by themselves, are from that, relative to the sum of absolute shares.
    """

    vectors: Any
    bias: Tensor
    output: Tensor
    error: float


@dataclass(frozen=True)
class FrozenCheck:
    """How well the frozen map stands for the model; figures are relative to the largest output.

    Attributes:
        replay: the map at the model's own input against the model's output.
        sum: the parts of all positions and the constant against the output.
        affinity: the map, without the constant, at the sum of two unrelated inputs against the sum of its values there,
            relative to the largest of these.
        leak: the constant of a copy of the model whose biases are all zero, against its output: what it is more than
            zero comes from something that was held fixed as a whole though it should have been followed.  None where
            the model is a function and not a module, or keeps its weights elsewhere (offloaded or sharded).
    """

    replay: float
    sum: float
    affinity: float
    leak: float | None

    @property
    def worst(self) -> float:
        """The largest of the figures."""
        return max(self.replay, self.sum, self.affinity, self.leak or 0.0)


class FrozenModel:
    """A model or layer, at given inputs, as a linear map of its input vectors and its biases.

    What is frozen: attention weights, 1/sigma of norms, act(z)/z of activations, gates, routing.  The model is run each
    time a question is asked, and left as it was: no hook, no changed flag, no gradient in its parameters.

    Args:
        model: a module, or any function that runs one.
        inputs: what it takes: a mapping (as keywords), a tensor or a tuple (positionally).
        layer: a module within ``model``: the map is that of its first call, from its input to its output.
        of: which input the vectors are, by name; all other inputs are constants.  By default, for each sequence that
            the model reads: the input itself where it is vectors (hidden states, embeddings), else the residual stream
            as the first layer reads it, so that position and type embeddings are part of their token.
        activation, product: see :class:`~captum_norm.DecompX`.

    Attributes:
        x: the input vectors, (batch, position, model) as a rule; a tuple where there are several sequences.
        y: the output as the model gives it: logits, hidden states, or the first tensor that it returns.

    Raises:
        ValueError: if there is no such input or layer, or no residual stream is seen.
        NotFrozenError: a ValueError, where an operation cannot be held fixed, naming it and its module.

    Source: Modarressi et al. (2023), https://arxiv.org/abs/2306.02873, for encoders of BERT's kind; here by rules for
    torch's operations, for any model.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).eval().double()
        >>> x = torch.randn(1, 3, 8, dtype=torch.float64)
        >>> frozen = FrozenModel(layer, x)
        >>> parts, constant = frozen.decompose()  # what each position adds to each output vector
        >>> tuple(parts.shape), torch.allclose(parts.sum(0) + constant, layer(x))
        ((3, 1, 3, 8), True)
        >>> found = frozen.contributions((2, 5))  # output vector 2, entry 5
        >>> torch.allclose(found.vectors.sum((1, 2)) + found.bias, layer(x)[:, 2, 5])
        True
        >>> frozen.check().worst < 1e-12
        True
    """

    def __init__(
        self,
        model: Callable[..., Any],
        inputs: ModelInputs,
        *,
        layer: nn.Module | None = None,
        of: str | None = None,
        activation: ActivationType = "ZO",
        product: ProductType = "half",
    ) -> None:
        self.conventions = Conventions(activation, product)
        self._model, self._of, self._inputs = model, of, _detached(inputs)
        if layer is not None:
            self._inputs = find_call(self._run, layer)
            self._model = layer
        self._names, self._starts = self._beginnings()
        with torch.no_grad():
            self.y = _main(self._run()).detach()
        self._vectors = self._read()

    @property
    def x(self) -> Any:
        """The input vectors, (batch, position, model) as a rule; a tuple where there are several sequences."""
        return _alone_or_all(self._vectors)

    # ---- backwards

    def contributions(self, target: Target) -> Contributions:
        """What each entry of the input vectors, and the biases, add to one number per example: one backward pass.

        Args:
            target: the index of that number in :attr:`y` after the batch (a class; a row and a class), or a function
                from the output to it, (batch,).

        Raises:
            ValueError: if the target does not leave one number per example.
            NotFrozenError: if an operation cannot be held fixed.
        """
        run = BackwardRun(self.conventions, starts=self._starts)
        with run.running():
            z = run.result(_selected(_main(self._run(run)), target))
        if not z.requires_grad:
            raise NotFrozenError("the number explained does not depend on the input vectors in linear form.")
        leaves = [run.leaves[number] for number in range(len(self._vectors))]
        *gradients, one = torch.autograd.grad(z.sum(), [*leaves, run.one], allow_unused=True)
        with torch.no_grad():
            vectors = tuple(_shares(x, gradient) for x, gradient in zip(self._vectors, gradients, strict=True))
            bias = z.detach() - torch.stack([part.flatten(1).sum(1) for part in vectors]).sum(0)
            counted = 0.0 if one is None else float(one)
            size = sum(float(part.abs().sum()) for part in vectors) + abs(counted)
        error = abs(float(bias.sum()) - counted) / max(size, torch.finfo(z.dtype).tiny)
        return Contributions(_alone_or_all(vectors), bias, z.detach(), error)

    # ---- forwards

    def __call__(self, *others: Tensor) -> Tensor:
        """The frozen map at other inputs, L(x') + c.

        Args:
            others: (n, *shape of x), for each sequence.

        Returns:
            (n, *shape of y).
        """
        return self._propagated(others, torch.ones(len(others[0])))

    def linear(self, *others: Tensor) -> Tensor:
        """The map without its biases, L(x'): arguments and result as those of the map itself."""
        return self._propagated(others, torch.zeros(len(others[0])))

    def constant(self) -> Tensor:
        """What all biases add, c, shaped as y."""
        return self(*(torch.zeros_like(x)[None] for x in self._vectors))[0]

    def decompose(self) -> tuple[Any, Tensor]:
        """The part of each position in every output vector, and the constant: they sum to y.

        Needs the memory of as many runs as there are positions.

        Returns:
            The parts, (position, ...) with y's own axes behind, a tuple of such where there are several sequences; and
            c, shaped as y.
        """
        lengths = [x.shape[1] for x in self._vectors]
        alone = [_one_by_one(x, sum(lengths[:number]), sum(lengths) + 1) for number, x in enumerate(self._vectors)]
        ones = torch.zeros(sum(lengths) + 1)
        ones[-1] = 1
        *parts, constant = torch.split(self._propagated(alone, ones), [*lengths, 1])
        return _alone_or_all(tuple(parts)), constant[0]

    # ---- how good it is

    def check(self, seed: int = 0) -> FrozenCheck:
        """The four tests that a frozen map must pass; the first three are blind to freezing too much, the last is not.

        Args:
            seed: of the unrelated input.

        Example:
            >>> frozen = FrozenModel(nn.Linear(2, 2), torch.ones(1, 1, 2))
            >>> frozen.check().leak
            0.0
        """
        size = float(self.y.abs().max())
        parts, constant = self.decompose()
        of_tokens = torch.stack([part.sum(0) for part in (parts if isinstance(parts, tuple) else (parts,))]).sum(0)
        rng = torch.Generator().manual_seed(seed)
        drawn = [torch.randn(2, *x.shape, generator=rng).to(x) for x in self._vectors]
        at, other, both = self.linear(*(torch.cat([u, u.sum(0, keepdim=True)]) for u in drawn))

        def off(actual: Tensor, expected: Tensor) -> float:
            return float((actual - expected).abs().max()) / size

        return FrozenCheck(
            replay=off(self(*(x[None] for x in self._vectors))[0], self.y),
            sum=off(of_tokens + constant, self.y),
            affinity=float((both - at - other).abs().max() / both.abs().max().clamp_min(torch.finfo(at.dtype).tiny)),
            leak=self._leak(),
        )

    def _leak(self) -> float | None:
        if not isinstance(self._model, nn.Module) or not all(map(_is_there, self._model.parameters())):
            return None
        model = copy.deepcopy(self._model)
        with torch.no_grad():
            for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
                if tensor.is_floating_point() and name.rpartition(".")[2].endswith(_BIASES):
                    tensor.zero_()
        other = FrozenModel(
            model,
            self._inputs,
            of=self._of,
            activation=self.conventions.activation,
            product=self.conventions.product,
        )
        return float(other.constant().abs().max() / other.y.abs().max())

    # ---- running

    def _beginnings(self) -> tuple[list[Any], list[Start]]:
        """The inputs that hold the vectors, then the operations that make the others."""
        named = dict(zip(named_inputs(self._model, self._inputs), self._keys(), strict=False))
        if self._of is not None and self._of not in named:
            raise ValueError(f"FrozenModel: there is no input {self._of!r}; there are {', '.join(map(str, named))}.")
        if self._of is not None and _is_vectors(self._given(named[self._of])):
            return [named[self._of]], []
        sources = position_sources(named_inputs(self._model, self._inputs))
        streams = find_streams(self._run, list(sources.values()))
        if self._of is not None:
            streams = [stream for stream in streams if stream.source == list(sources).index(self._of)]
        inputs = [named[list(sources)[int(stream.source)]] for stream in streams if stream.start is None]
        starts = [stream.start for stream in streams if stream.start is not None]
        for stream in streams:  # vectors that are the tokens themselves, not yet cut into patches or frames
            if isinstance(stream.source, int) and stream.whole and stream.start is not None:
                starts.remove(stream.start)
                inputs.append(named[list(sources)[stream.source]])
        if not streams:
            inputs = [named[name] for name, value in sources.items() if _is_vectors(value)]
        if not inputs and not starts:
            raise ValueError("FrozenModel: no vectors were found among the inputs, and no tokens that are mixed.")
        return inputs, starts

    def _keys(self) -> list[Any]:
        return list(self._inputs) if isinstance(self._inputs, Mapping) else list(range(len(self._inputs)))

    def _given(self, key: Any) -> Any:
        return self._inputs[key]

    def _run(self, run: FrozenRun | None = None) -> Any:
        """Call the model; in a frozen run, with the vectors among its inputs being followed."""
        inputs = self._inputs
        if run is not None and self._names:
            begun = {
                key: run.begin(self._given(key).clone(), len(self._starts) + number)
                for number, key in enumerate(self._names)
            }
            if isinstance(inputs, Mapping):
                inputs = {**inputs, **begun}
            else:
                inputs = tuple(begun.get(number, value) for number, value in enumerate(inputs))
        return _call(self._model, inputs)

    def _read(self) -> tuple[Tensor, ...]:
        run = BackwardRun(self.conventions, starts=self._starts)
        with torch.no_grad(), run.running():
            self._run(run)
        return tuple(run.leaves[number].detach() for number in range(len(self._starts) + len(self._names)))

    def _propagated(self, others: Sequence[Tensor], ones: Tensor) -> Tensor:
        if len(others) != len(self._vectors):
            raise ValueError(f"FrozenModel: the map has {len(self._vectors)} inputs, got {len(others)}.")
        run = PartsRun(self.conventions, ones.to(self._vectors[0]), starts=self._starts, given=others)
        with torch.no_grad(), run.running():
            return run.result(_main(self._run(run)))


def _alone_or_all(tensors: tuple[Tensor, ...]) -> Any:
    return tensors[0] if len(tensors) == 1 else tensors


def _is_there(parameter: Tensor) -> bool:
    """Whether its numbers are in it, and no placeholder for numbers that are elsewhere or only in part here."""
    return type(parameter) in (nn.Parameter, Tensor) and not parameter.is_meta


def _is_vectors(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.ndim > 1


def _shares(x: Tensor, gradient: Tensor | None) -> Tensor:
    """x times its gradient; 0 where that is 0, whatever x is there (padding)."""
    return torch.zeros_like(x) if gradient is None else torch.where(gradient == 0, 0, x * gradient)


def _one_by_one(x: Tensor, first: int, number: int) -> Tensor:
    """Each position of x without the others, from ``first`` on among ``number`` parts: (number, *shape of x)."""
    parts = x.new_zeros(number, *x.shape)
    for position in range(x.shape[1]):
        parts[first + position, :, position] = x[:, position]
    return parts


def _call(model: Callable[..., Any], inputs: Any) -> Any:
    return model(**inputs) if isinstance(inputs, Mapping) else model(*inputs)


def _detached(inputs: ModelInputs) -> Any:
    if isinstance(inputs, Tensor):
        inputs = (inputs,)
    if isinstance(inputs, Mapping):
        return {name: value.detach() if isinstance(value, Tensor) else value for name, value in inputs.items()}
    return tuple(value.detach() if isinstance(value, Tensor) else value for value in inputs)


def _main(output: Any) -> Tensor:
    """The tensor that is explained."""
    explained = output_tensor(output)
    if explained is None:
        raise ValueError(f"FrozenModel: the model returned {type(output).__name__} without a tensor to explain.")
    return explained


def _selected(y: Tensor, target: Target) -> Tensor:
    if callable(target):
        chosen = target(y)
    else:
        index: tuple[Any, ...] = target if isinstance(target, tuple) else (target,)
        chosen = y[(slice(None), *index)]
    if chosen.shape != y.shape[:1]:
        raise ValueError(
            f"FrozenModel.contributions explains one number per example, (batch,) = ({len(y)},), but of the output "
            f"{tuple(y.shape)} the target leaves {tuple(chosen.shape)}."
        )
    return chosen
