"""What is recorded of a study, so that its results can be cited and are never mixed with those of another?

*What decides the results* (model, data, methods, metrics, versions, kind of device) is compared when a store is opened
again.  What only describes the run (threads, machine, time) is recorded beside it.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn

from captum_norm.study.batches import Tokenized
from captum_norm.study.data import digest_of

_PACKAGES = ("captum-norm", "captum", "torch", "transformers", "numpy", "tokenizers")


def model_record(model: nn.Module) -> dict[str, Any]:
    """The class of a model, what it computes in, and a fingerprint of all its parameters and buffers.

    Example:
        >>> a, b = nn.Linear(2, 2), nn.Linear(2, 2)
        >>> model_record(a) == model_record(a), model_record(a) == model_record(b)
        (True, False)
    """
    floats = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
    return {
        "class": type(model).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "blake2b": _fingerprint(_weights(model)),
        "dtype": sorted({str(parameter.dtype).removeprefix("torch.") for parameter in floats}),
        "device": sorted({parameter.device.type for parameter in model.parameters()}),
        "attention": getattr(getattr(model, "config", None), "_attn_implementation", None),
    }


def data_record(examples: Sequence[Tokenized]) -> dict[str, Any]:
    """How many examples, and fingerprints of them and of what the tokenizer made of them."""
    tensors = ((f"{text.number}.{name}", ids) for text in examples for name, ids in sorted(text.inputs.items()))
    return {
        "examples": len(examples),
        "blake2b": digest_of(text.example for text in examples),
        "tokens": _fingerprint(tensors),
    }


def versions() -> dict[str, str]:
    """The packages that the results rest on."""
    return {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}}


def circumstances() -> dict[str, Any]:
    """What describes a run and does not decide its results."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _fingerprint(tensors: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and buffer with its numbers, those that accelerate keeps elsewhere until they are needed too."""
    elsewhere: dict[str, Tensor] = {}
    for prefix, module in model.named_modules():
        hook = getattr(module, "_hf_hook", None)
        for part in (hook, *getattr(hook, "hooks", ())):
            kept: Any = getattr(part, "weights_map", None)
            if kept is None:
                continue
            for name in dict(module.named_parameters()) | dict(module.named_buffers()):
                if name in kept:
                    elsewhere[f"{prefix}.{name}" if prefix else name] = kept[name]
    for name, tensor in model.state_dict().items():
        if tensor.device.type != "meta":
            yield name, tensor
        elif name in elsewhere:
            yield name, elsewhere[name].to(tensor.dtype)
        else:
            raise ValueError(
                f"the weight {name} of {type(model).__name__} is on the meta device, without numbers, so the model "
                "cannot be told from another. Load it with its weights, or place it by device_map."
            )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
