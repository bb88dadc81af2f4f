"""Any of this package's methods as the ``explain_func`` that Quantus' metrics call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def quantus_explainer(method: Callable[..., Any], **arguments: Any) -> Callable[..., Any]:
    """A function ``(model, inputs, targets, **kwargs) -> numpy array`` for ``quantus``' metrics and ``evaluate``.

    Args:
        method: how the method is made of a model: ``AttentionNorm``, or a function that returns one, such as
            ``lambda model: ALTI(HFForward(model))``.
        **arguments: for ``attribute``: ``position``, ``kind`` ...

    Returns:
        The function.  Scores have the shape of the inputs, whose dtype says whether they are ids; a ``device`` that
        Quantus passes on is where the model runs.

    Example:
        >>> import numpy as np
        >>> from captum_norm import AttentionNorm
        >>> encoder = torch.nn.TransformerEncoderLayer(8, nhead=2, batch_first=True).eval()
        >>> explain_func = quantus_explainer(AttentionNorm)
        >>> explain_func(encoder, np.ones((2, 3, 8), dtype="float32"), np.array([0, 1])).shape
        (2, 3, 8)
    """

    def explain_func(model: Any, inputs: Any, targets: Any = None, **given: Any) -> Any:
        """The scores, shaped as the inputs."""
        parameter = next(iter(model.parameters()), None) if isinstance(model, torch.nn.Module) else None
        device = given.get("device") or ("cpu" if parameter is None else parameter.device)
        tensor = torch.as_tensor(inputs).to(device)
        if parameter is not None and tensor.is_floating_point():
            tensor = tensor.to(parameter.dtype)
        one = method(model)
        of_target = getattr(one, "explains", "position") == "target"
        target = torch.as_tensor(targets).to(device) if of_target and targets is not None else None
        return one.attribute(tensor, target=target, **arguments).detach().cpu().numpy()

    return explain_func
