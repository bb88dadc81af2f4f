"""A layer's calls are seen and repeated, and nobody else notices."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_norm import ValueZeroing
from captum_norm.capture import InexactCaptureError
from captum_norm.intervention.calls import hooks_known
from tests.attr.models import ids, tiny
from tests.intervention.test_value_zeroing_maps import Block, X, built, maps_of

close = torch.testing.assert_close


def hooked(hook: Any) -> nn.Module:
    """Two blocks, the hook on a linear layer within the first."""
    model = built(Block(), Block())
    model.blocks[0].up.register_forward_hook(hook)
    return model


def test_a_hook_that_looks_sees_the_models_own_runs_alone():
    seen: list[Tensor] = []
    model = hooked(lambda module, args, output: seen.append(output))
    hooks = [dict(module._forward_hooks) for module in model.modules()]
    with torch.no_grad():
        plain = model.blocks[0].up(model.blocks[0].norm(X)).shape
        seen.clear()
    maps_of(lambda: model(X), layers=list(model.blocks))
    assert [tensor.shape for tensor in seen] == [plain, plain]  # recorded, watched
    assert [dict(module._forward_hooks) for module in model.modules()] == hooks


def test_a_hook_that_hands_on_what_it_was_given_only_looks():
    seen: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        seen.append(output)
        return output

    model = hooked(keep)
    maps_of(lambda: model(X))
    assert len(seen) == 3  # and once to find the layers


def test_hidden_states_asked_for_while_layers_run_again_are_those_of_the_model():
    model = tiny("Bert")
    seen: list[int] = []

    def forward(tokens: Tensor) -> Tensor:
        output = model(tokens, output_hidden_states=True)
        seen.append(len(output.hidden_states))
        return output.logits

    ValueZeroing(forward).attribute(ids(2, 6), target=1)
    assert len(set(seen)) == 1


def test_a_state_that_a_hook_keeps_for_the_model_is_the_models():
    class Kept(nn.Module):
        def __init__(self, by_hook: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.low, self.high, self.by_hook = Block(), Block(), by_hook
            self.low.register_forward_hook(lambda module, args, output: setattr(self, "state", output))

        def forward(self, x: Tensor) -> Tensor:
            output = self.low(x)
            return self.high(self.state if self.by_hook else output)

    models = [Kept(by_hook).double().eval() for by_hook in (True, False)]
    found, expected = (maps_of(lambda m=m: m(X), layers=[m.low, m.high])[0] for m in models)
    close(found, expected, rtol=0, atol=0)


def test_a_hook_on_all_modules_sees_the_models_own_runs_alone():
    model, seen = built(Block(), Block()), []
    with torch.no_grad():
        handle = nn.modules.module.register_module_forward_hook(lambda module, args, output: seen.append(module))
        try:
            model(X)
            once = len(seen)
            maps_of(lambda: model(X), layers=list(model.blocks))
        finally:
            handle.remove()
    assert len(seen) == 3 * once


def test_a_hook_that_writes_into_what_it_is_shown_is_refused():
    def double(module: nn.Module, args: Any, output: Tensor) -> None:
        output.mul_(2)

    model = hooked(double)
    with pytest.raises(InexactCaptureError, match=r"Block, run again.*a hook on 'up' writes.*return the new value"):
        maps_of(lambda: model(X))


def test_weights_that_torchs_own_hooks_make_are_there():
    plain, normed = built(Block(), Block()), built(Block(), Block())
    normed.load_state_dict(plain.state_dict())
    nn.utils.spectral_norm(normed.blocks[0].up.eval(), n_power_iterations=1)
    normed.eval()
    with torch.no_grad():
        normed(X)
        plain.blocks[0].up.weight.copy_(normed.blocks[0].up.weight)
    found, expected = (maps_of(lambda m=m: m(X), layers=list(m.blocks))[0] for m in (normed, plain))
    close(found, expected, rtol=0, atol=1e-12)


def test_another_threads_hooks_are_called_meanwhile():
    seen: list[int] = []
    model = hooked(lambda *_: seen.append(threading.get_ident()))
    with hooks_known([model], silent=True):
        with hooks_known([model], silent=True):
            model(X)
        model(X)
        thread = threading.Thread(target=model, args=(X,))
        thread.start()
        thread.join()
    assert len(seen) == 1
    model(X)
    assert len(seen) == 2


def test_a_hook_taken_away_meanwhile_stays_away():
    model = built(Block(), Block())
    handle = model.blocks[0].register_forward_hook(lambda *_: None)
    with hooks_known([model]):
        handle.remove()
    assert not model.blocks[0]._forward_hooks
