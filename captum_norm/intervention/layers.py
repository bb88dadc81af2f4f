"""Which module is the layer around an attention call?

The layer is the smallest module that holds the call and whose output is the next layer's input, so that residuals,
norms and feed-forward part are inside.  Some classes say of themselves that they are layers (transformers'
``GradientCheckpointingLayer``, torch's own); for all others one forward pass shows whose output enters another module
of its kind, and where none does, whether a list's modules are layers together (``stretches``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import Module

from captum_norm.capture import AttentionCall
from captum_norm.intervention.calls import watched
from captum_norm.intervention.stretches import Stretch, stretches_of
from captum_norm.operations.facts import Facts

_LAYERS_OF_TORCH = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)


def layers_of(
    calls: Sequence[AttentionCall], run: Callable[[], Any], layers: Sequence[Module] | None = None
) -> list[Module | Stretch]:
    """The layer of each attention call.

    Args:
        calls: the calls, with the modules that were running.
        run: runs the model once more; called only if some layer does not say that it is one, and again for each list
            of modules that may be layers together.
        layers: the layers, where they are known.

    Returns:
        For each call a module, or the stretch of a module's forward that is its layer.

    Raises:
        ValueError: if there is no such module, naming the call and what was found.

    Example:
        >>> from captum_norm.capture import recording
        >>> import torch
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        >>> encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
        >>> with torch.no_grad(), recording() as records:
        ...     _ = encoder(torch.randn(1, 3, 8))
        >>> [type(module).__name__ for module in layers_of([record.call for record in records], lambda: None)]
        ['TransformerEncoderLayer', 'TransformerEncoderLayer']
    """
    is_layer: Callable[[Module], bool] = _says_so
    if layers is not None:
        given = {id(layer) for layer in layers}
        is_layer = lambda module: id(module) in given  # noqa: E731
    around: list[Module | Stretch | None] = [_innermost(call, is_layer) for call in calls]
    missing = [call for call, layer in zip(calls, around, strict=True) if layer is None]
    if missing and layers is None:
        chained = _chained({module for call in missing for module in call.modules}, run)
        around = [layer or _innermost(call, lambda m: m in chained) for call, layer in zip(calls, around, strict=True)]
        missing = [call for call, layer in zip(calls, around, strict=True) if layer is None]
        stretches = iter(stretches_of(missing, run) if missing else ())
        around = [layer or next(stretches) for layer in around]
        missing = [call for call, layer in zip(calls, around, strict=True) if layer is None]
    if missing:
        raise ValueError(_no_layer(missing[0], layers))
    return [layer for layer in around if layer is not None]


def _says_so(module: Module) -> bool:
    return isinstance(module, _LAYERS_OF_TORCH) or any(
        kind.__name__ == "GradientCheckpointingLayer" for kind in type(module).__mro__
    )


def _innermost(call: AttentionCall, is_layer: Callable[[Module], bool]) -> Module | None:
    return next((module for module in reversed(call.modules) if is_layer(module)), None)


def _chained(candidates: set[Module], run: Callable[[], Any]) -> set[Module]:
    """The modules whose output another module of their kind takes in, and these."""
    makers: Facts[list[Module]] = Facts()
    chained: set[Module] = set()

    def enter(module: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for tensor in _tensors((*args, *kwargs.values())):
            before = [maker for maker in makers[tensor] or () if type(maker) is type(module)]
            if before:
                chained.update((module, *before))

    def leave(module: Module, output: Any) -> None:
        for tensor in _tensors(output if isinstance(output, tuple | list) else (output,)):
            makers[tensor] = [*(makers[tensor] or ()), module]

    with watched(candidates, enter, leave):
        run()
    return chained


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    return [value for value in values if isinstance(value, Tensor)]


def _no_layer(call: AttentionCall, layers: Sequence[Module] | None) -> str:
    around = ", ".join(dict.fromkeys(type(module).__name__ for module in call.modules)) or "none"
    title = f"attention call {call.name!r} ({call.kind}, call {call.call})"
    if layers is not None:
        return f"{title} runs in none of the {len(layers)} modules given as layers=, but in these: {around}."
    return (
        f"the layer around {title} was not found: of the modules it runs in, {around}, none hands its output to "
        "another module of its kind, and no list of modules runs layers that are alike, with nothing in between, each "
        "given what the one before hands on (a norm that no module is, in front of attention, hides that). Name the "
        "layers: layers=list(model.blocks)."
    )
