"""Where does a model turn its input into one vector per token or patch, and how is that vector changed in passing?

The embedding module is found by what runs: it is the module that is called with the input itself.  Names do not tell:
the top-level ``get_input_embeddings()`` of BART, M2M100 or T5 is not the module that their encoders run, and GPT-2
looks up token types in the same table as tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any, Literal

import torch
from torch import Tensor, nn

from captum_norm.forward.keywords import suggestion, title, unwrapped

VectorChange = Callable[[nn.Module, Tensor], Tensor]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class EmbeddingSites:
    """The modules of a model that may embed its input.

    Args:
        model: the model.
        main: the name of its input; the modules are known by themselves for token ids (``...input_ids``) and
            ``pixel_values``.
        named: the name of the embedding module, where it is given.
    """

    def __init__(self, model: nn.Module, main: str, named: str | None) -> None:
        self.model, self.main, self.named = model, main, named
        everything = list(unwrapped(model).modules())
        self.declared = _declared_embeddings(everything)
        self.modules = self._candidates(everything)

    def _candidates(self, everything: list[nn.Module]) -> list[nn.Module]:
        if self.named is not None:
            return [unwrapped(self.model).get_submodule(self.named)]
        if self.main.endswith("input_ids"):
            # A wrapper around one table (an adapter) counts as a whole; one around several adds more than the ids.
            whole = [m for m in self.declared if sum(isinstance(part, nn.Embedding) for part in m.modules()) <= 1]
            inside = {part for m in whole for part in m.modules() if part is not m}
            tables = [m for m in everything if isinstance(m, nn.Embedding)]
            return [m for m in dict.fromkeys([*whole, *tables]) if m not in inside]
        if self.main == "pixel_values":
            patches = [m for m in self.declared if not isinstance(m, nn.Embedding)]
            return patches or [m for m in everything if isinstance(m, _CONVOLUTIONS)]
        return []

    @contextmanager
    def changed(self, main: Tensor, change: VectorChange) -> Iterator[None]:
        """While this lasts, what embeds ``main`` returns ``change(module, output)``, for the calling thread.

        Args:
            main: the input; no other input of the model may share its memory.
            change: from the module and its output, batch first, to a tensor of the same shape.

        Raises:
            ValueError: at the end, if no module was seen to embed ``main``.
        """
        thread, seen, handles = get_ident(), list[nn.Module](), []

        def hook(module: nn.Module, args: tuple[Any, ...], *rest: Any) -> Any:
            if get_ident() != thread:  # which may meet the hook while it is taken away, and pass no kwargs
                return None
            kwargs, output = rest
            layout = self._embeds(module, main, (*args, *kwargs.values()), first=not seen)
            if layout is None:
                return None
            seen.append(module)
            return _changed(module, output, change, layout, main.shape[-1])

        try:
            for module in self.modules:
                handles.append(module.register_forward_hook(hook, with_kwargs=True))
            yield
        finally:
            for handle in handles:
                handle.remove()
        if not seen:
            raise ValueError(self.none_found())

    def _embeds(self, module: nn.Module, main: Tensor, arguments: tuple[Any, ...], first: bool) -> _AxisOrder | None:
        """Whether a call with these arguments embeds ``main``, and which way round."""
        if self.named is not None:
            return "batch first" if first else None
        given = next((item for item in arguments if isinstance(item, Tensor)), None)
        if given is None or given.is_floating_point() != main.is_floating_point() or given.numel() < main.numel():
            return None
        known = main.is_floating_point() or module in self.declared
        if given.data_ptr() == main.data_ptr() or (first and known):
            return _layout_of(given, main)
        return None

    def none_found(self) -> str:
        """What to say where no module embeds the input."""
        return (
            f"HFForward(mode='gate'): no module of {title(self.model)} was seen to embed {self.main}: there is nothing "
            "to gate. Name the module whose output is one vector per token or patch: "
            "HFForward(model, mode='gate', embedding='encoder.embed')."
        )


def gated(gate: Tensor) -> VectorChange:
    """The change that multiplies each token's or patch's vector by its entry of ``gate``, (batch, token)."""

    def change(module: nn.Module, output: Tensor) -> Tensor:
        shape = _one_per_vector(module, output)
        if shape.numel() != gate.numel():
            raise ValueError(
                f"HFForward: the gate is {tuple(gate.shape)}, but the embedding has {len(output)} examples of "
                f"{shape.numel() // len(output)} tokens or patches. forward.inputs(encoding) makes a gate that fits."
            )
        # Multiplied in the wider dtype of the two, rounded once.
        return (output * gate.reshape(shape)).to(output.dtype)

    return change


def gate_of_ones(sites: EmbeddingSites, main: Tensor, run: Callable[[], object]) -> Tensor:
    """A one for each vector that ``main`` is embedded to, (batch, token), in the dtype of the vectors.

    Args:
        sites: the modules that may embed.
        main: the model's input.
        run: calls the model; it gets no further than the embedding.

    Raises:
        ValueError: if no module was seen to embed ``main``.
    """

    def stop(module: nn.Module, output: Tensor) -> Tensor:
        raise _EmbeddingSeen(output.new_ones(len(output), _one_per_vector(module, output).numel() // len(output)))

    try:
        with torch.no_grad(), sites.changed(main, stop):
            run()
    except _EmbeddingSeen as seen:
        return seen.gate
    raise ValueError(sites.none_found())


def module_name(model: nn.Module, embedding: str | nn.Module | None) -> str | None:
    """The name of a module given by itself or by name: what survives a copy of the model.

    Raises:
        ValueError: if the model has no such module.
    """
    named = dict(unwrapped(model).named_modules())
    if isinstance(embedding, nn.Module):
        found = [name for name, module in named.items() if module is embedding]
        if not found:
            raise ValueError(f"HFForward: embedding is a {type(embedding).__name__} that is no part of {title(model)}.")
        return found[0]
    if embedding is not None and embedding not in named:
        raise ValueError(
            f"HFForward: {title(model)} has no module {embedding!r} for embedding=.{suggestion(embedding, list(named))}"
        )
    return embedding


class _EmbeddingSeen(Exception):  # noqa: N818  (no error: it ends a forward whose embedding is all that was wanted)
    def __init__(self, gate: Tensor) -> None:
        super().__init__("the model has embedded its input")
        self.gate = gate


_AxisOrder = Literal["batch first", "sequence first", "padded"]


def _layout_of(given: Tensor, main: Tensor) -> _AxisOrder | None:
    """Which way round a module was given ``main`` or a copy of it; None where it was given something else."""
    if given.numel() > main.numel():  # Longformer and BigBird fill up to a multiple of their window
        padded = given.shape[:-1] == main.shape[:-1] and torch.equal(given[..., : main.shape[-1]], main)
        return "padded" if padded and not main.is_floating_point() else None
    alike = given.shape[-1] == main.shape[-1]
    if alike and given.data_ptr() == main.data_ptr() and given.stride(-1) == main.stride(-1):
        return "batch first"
    straight = alike and (main.is_floating_point() or _is_copy(given.reshape(main.shape), main))
    turned = main.ndim == 2 and given.shape == main.T.shape and torch.equal(given, main.T)
    if straight and turned and main.numel() > 1:
        raise ValueError(
            f"HFForward: the model embeds a copy of its input, {tuple(main.shape)}, in which batch and sequence cannot "
            "be told apart. Run another number of examples at once."
        )
    return "batch first" if straight else "sequence first" if turned else None


def _is_copy(given: Tensor, ids: Tensor) -> bool:
    """Equal, but for one id that may stand in all places of some others: models so make room for images."""
    same = given == ids
    if same.all():
        return True
    replaced, stand_ins = ids[~same], torch.unique(given[~same])
    return bool(same.any()) and len(stand_ins) == 1 and not torch.isin(ids[same], replaced).any()


def _changed(module: nn.Module, output: Any, change: VectorChange, layout: _AxisOrder, length: int) -> Any:
    if isinstance(output, tuple):
        return (_changed(module, output[0], change, layout, length), *output[1:])
    if layout == "padded":
        return torch.cat([change(module, output[:, :length]), output[:, length:]], dim=1)
    if layout == "sequence first":
        return change(module, output.transpose(0, 1)).transpose(0, 1)
    return change(module, output)


def _one_per_vector(module: nn.Module, output: Tensor) -> torch.Size:
    """The shape in which one number per token or patch multiplies a module's output."""
    if isinstance(module, _CONVOLUTIONS):
        return torch.Size((output.shape[0], 1, *output.shape[2:]))
    if output.ndim == 3:
        return torch.Size((*output.shape[:2], 1))
    raise ValueError(
        f"HFForward(mode='gate'): {type(module).__name__} returns shape {tuple(output.shape)}, in which tokens or "
        "patches cannot be told from channels. Name the convolution or table inside it with embedding=."
    )


def _declared_embeddings(modules: list[nn.Module]) -> list[nn.Module]:
    """What the models among ``modules`` call their input embeddings."""
    found = []
    for module in modules:
        if hasattr(type(module), "get_input_embeddings"):
            declare: Any = module.get_input_embeddings
            try:
                found.append(declare())
            except (AttributeError, NotImplementedError):  # models without one say so in either way
                continue
    return list(dict.fromkeys(m for m in found if isinstance(m, nn.Module)))
