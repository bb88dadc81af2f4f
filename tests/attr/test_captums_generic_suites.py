"""Captum's generic suites, pointed at our methods.

Captum generates its hook, target and DataParallel tests from one list of cases, which its wheel ships
(``captum.testing.attr.helpers.test_config.config``) while the suites themselves it does not.  Here the list is replaced
in place by our methods, cases are read by Captum's own reader, and what its suites check is checked anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from captum.attr import NoiseTunnel
from captum.testing.attr.helpers import test_config
from captum.testing.attr.helpers.gen_test_utils import gen_test_name, get_target_layer, parse_test_config
from torch import Tensor

from captum_norm.attr import ALTILogit, AttentionNorm
from captum_norm.forward import HFForward

from .methods import METHODS
from .models import ids, tiny
from .test_contract import hooks_of

TOKENS, TARGETS = ids(4, 7), {"int": 1, "list": [0, 1, 2, 0], "tensor": torch.tensor([0, 1, 2, 0]), "tuple": [(1,)] * 4}
LAYER = "model.bert.encoder.layer.1.attention"
INPUTS: dict[str, tuple[Any, Any]] = {
    "ids": (TOKENS, None),
    "gate": (torch.ones(4, 7), TOKENS),
    "embeds": (torch.randn(4, 7, 16, generator=torch.Generator().manual_seed(0)), None),
}


def case(name: str, method: Any, model: HFForward, target: Any, layer: Any = None, **more: Any) -> dict[str, Any]:
    inputs, extras = INPUTS[model.mode]
    arguments = {"inputs": inputs, "additional_forward_args": extras, "target": target, **more.pop("arguments", {})}
    found = {"name": name, "algorithms": [method], "model": model, "attribute_args": arguments}
    return found | ({} if layer is None else {"layer": layer}) | more


def our_cases() -> Iterator[dict[str, Any]]:
    methods = {row.method: row for row in METHODS if not row.arguments}
    families = {row.family for row in methods.values()}
    of = {family: {mode: HFForward(tiny(family), mode) for mode in INPUTS} for family in families}
    for method, row in methods.items():
        models = of[row.family]
        layer = LAYER if row.layer else None
        for mode, model in models.items():
            for name, target in TARGETS.items():
                yield case(f"{mode}_{name}", method, model, target, layer)
            if mode != "ids" and not row.layer:
                noise = {"stdevs": 0.0, "nt_samples": 3}
                yield case(f"{mode}_list", method, model, TARGETS["list"], noise_tunnel=True, arguments=noise)
        if row.layer:
            yield case("several", method, models["ids"], 1, [LAYER, LAYER.replace("1", "0")])


@pytest.fixture(autouse=True)
def _captums_table() -> Iterator[None]:
    captums = list(test_config.config)
    test_config.config[:] = our_cases()
    yield
    test_config.config[:] = captums


def read(number: int) -> tuple[Any, Any, dict[str, Any]]:
    """One case by Captum's own reader: the method (in a NoiseTunnel where asked for), the model, the arguments."""
    (algorithm,), model, arguments, layer, noise_tunnel, _ = parse_test_config(test_config.config[number])
    method = algorithm(model) if layer is None else algorithm(model, get_target_layer(model, layer))
    return (NoiseTunnel(method) if noise_tunnel else method), model, dict(arguments)


def _name(c: dict[str, Any]) -> str:
    return gen_test_name("case", c["name"], c["algorithms"][0], c.get("noise_tunnel", False))


CASES = list(enumerate(map(_name, our_cases())))
every_case = pytest.mark.parametrize("number", [n for n, _ in CASES], ids=[name for _, name in CASES])


def as_list(result: Any) -> list[Tensor]:
    return list(result) if isinstance(result, list | tuple) else [result]


@pytest.mark.wide(7)
@every_case
def test_hooks_are_removed(number):
    method, model, arguments = read(number)
    before = hooks_of(model)
    method.attribute(**arguments)
    assert hooks_of(model) == before
    reads_tokens = isinstance(getattr(method, "attribution_method", method), ALTILogit)
    with pytest.raises(TypeError if reads_tokens else (AssertionError, IndexError)):
        method.attribute(**arguments | {"target": (9999, 20, 20, 20)})
    assert hooks_of(model) == before


@pytest.mark.wide(7)
@every_case
def test_a_batch_of_targets_equals_each_example_with_its_own(number):
    """Captum's suite runs each example alone with its own target and compares."""
    method, _, arguments = read(number)
    together = as_list(method.attribute(**arguments))
    for example in range(4):
        target = arguments["target"]
        alone = {name: value[[example]] if isinstance(value, Tensor) else value for name, value in arguments.items()}
        alone["target"] = target if isinstance(target, int) else target[example]
        for found, expected in zip(as_list(method.attribute(**alone)), together, strict=True):
            torch.testing.assert_close(found, expected[[example]], rtol=1e-4, atol=1e-5)


@pytest.mark.wide(7)
@every_case
def test_data_parallel_gives_the_same(number):
    if torch.cuda.is_available():
        pytest.skip("DataParallel would move the model to GPUs")
    method, model, arguments = read(number)
    expected = as_list(method.attribute(**arguments))
    inner = getattr(method, "attribution_method", method)
    inner.forward_func = torch.nn.DataParallel(model)
    torch.testing.assert_close(as_list(method.attribute(**arguments)), expected, rtol=0, atol=0)


def test_the_table_is_captums_own_list():
    assert {c["algorithms"][0] for c in test_config.config} == {row.method for row in METHODS}
    assert any(AttentionNorm in c["algorithms"] for c in test_config.config)
