"""Parts of a feed-forward layer add up to what it does, and are the integrals that they are said to be."""

import numpy as np
import pytest
import torch
from torch import nn

from captum_norm.functional import feed_forward_parts

ACTIVATIONS = {
    "gelu": nn.functional.gelu,
    "gelu_new": lambda x: nn.functional.gelu(x, approximate="tanh"),
    "silu": nn.functional.silu,
    "relu": nn.functional.relu,
}
EXACT = {"rtol": 1e-11, "atol": 1e-11}


def layer(gated, biased=True):
    def drawn(*shape):
        return torch.randn(*shape, dtype=torch.float64)

    weights = {"W_1": drawn(10, 6), "b_1": drawn(10) if biased else None, "W_2": drawn(6, 10)}
    return weights | ({"W_gate": drawn(10, 6), "b_gate": drawn(10) if biased else None} if gated else {})


def run(x, activation, W_1, b_1, W_2, W_gate=None, b_gate=None):
    act, linear = ACTIVATIONS[activation], nn.functional.linear
    hidden = linear(x, W_1, b_1)
    return linear(act(hidden) if W_gate is None else act(linear(x, W_gate, b_gate)) * hidden, W_2)


def along_slope(function, x, direction, step=1e-5):
    """The slope of a function at x along a direction, by a central difference."""
    return (function(x + step * direction) - function(x - step * direction)) / (2 * step)


@pytest.mark.parametrize("size", [1e-12, 1e-3, 1.0, 30.0, 1000.0])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_parts_are_integrated_gradients_and_add_up_to_the_output(activation, gated, size):
    """The definition, by many small steps along the path and slopes there."""
    given, parts = layer(gated), size * torch.randn(3, 4, 6, dtype=torch.float64)
    found = feed_forward_parts(parts, activation=activation, **given)
    whole = run(parts.sum(-2), activation, **given) - run(torch.zeros(6, dtype=torch.float64), activation, **given)
    torch.testing.assert_close(found.sum(-2), whole, rtol=1e-10, atol=1e-13 + 1e-13 * size)
    steps = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    path = parts.sum(-2)[None] * steps[:, None, None]
    for key in range(2):
        along = parts[:, key].expand_as(path)
        slope = along_slope(lambda x: run(x, activation, **given), path, along, step=1e-5 / size).mean(0)
        torch.testing.assert_close(found[:, key], slope, rtol=1e-2, atol=3e-3 * float(found.abs().max()))


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "silu"])
def test_a_gate_of_any_width_is_integrated_to_the_last_digits(activation):
    """One hidden entry, gate from b to A + b: against composite integration over 2000 short intervals."""
    for gate, bias in ((0, 0.7), (1e-9, -2), (0.5, 0), (7, -3), (40, -20), (-300, 100), (90, -400)):
        A, b, u = (torch.tensor([x], dtype=torch.float64) for x in (gate, bias, 1.5))
        parts = torch.tensor([[0.0, 1.0]], dtype=torch.float64)  # the gate does not see it: J alone
        other = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
        W_1, W_gate = torch.tensor([[0.0, 1.0]]).double(), torch.stack([A, 0 * A], -1)
        found = feed_forward_parts(
            torch.cat([parts, other]), W_1, u, torch.eye(2, 1).double(), activation, W_gate=W_gate, b_gate=b
        )
        nodes, weights = np.polynomial.legendre.leggauss(8)
        t = torch.from_numpy((np.arange(2000)[:, None] + (nodes + 1) / 2) / 2000)
        J = (ACTIVATIONS[activation](t * A + b) * torch.from_numpy(weights) / 4000).sum()
        torch.testing.assert_close(found[0, 0], J, rtol=1e-11, atol=1e-14)


def test_no_input_has_the_slope_at_the_bias_and_relu_a_half_at_zero():
    given = layer(gated=False)
    part = torch.randn(1, 6, dtype=torch.float64)
    found = feed_forward_parts(torch.cat([part, -part]), activation="silu", **given)
    at_bias = along_slope(lambda x: run(x, "silu", **given), torch.zeros_like(part[0]), part[0])
    torch.testing.assert_close(found, torch.stack([at_bias, -at_bias]), rtol=1e-6, atol=1e-8)
    one = torch.ones(1, 1)
    halves = feed_forward_parts(torch.tensor([[2.0], [-2.0]]), one, None, one, "relu")
    assert halves.tolist() == [[1.0], [-1.0]]


def test_parts_in_float32_are_those_of_float64():
    given, parts = layer(gated=True), torch.randn(2, 3, 6, dtype=torch.float64)
    single = {name: tensor.float() for name, tensor in given.items()}
    found = feed_forward_parts(parts.float(), activation="silu", **single)
    assert found.dtype == torch.float32
    expected = feed_forward_parts(parts, activation="silu", **given)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_what_is_no_feed_forward_part_is_refused():
    given, parts = layer(gated=True), torch.randn(3, 6, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"activation should be one of 'gelu', .*, got 'tanh'"):
        feed_forward_parts(parts, activation="tanh", **given)
    with pytest.raises(ValueError, match="b_gate is a gate's bias, but W_gate is None"):
        feed_forward_parts(parts, activation="silu", **(given | {"W_gate": None}))
    with pytest.raises(ValueError, match="hidden is 10 in W_1 but 9 in W_2"):
        feed_forward_parts(parts, activation="silu", **(given | {"W_2": given["W_2"][:, 1:]}))


def test_parts_are_those_of_numeric_integration(oracles):
    """400 nodes of Gauss-Legendre on the Jacobian; rows 2 and 3 hold parts that all but cancel."""
    file = np.load(oracles / "feedforward.npz")
    known = {name: torch.from_numpy(file[name]) for name in file.files if "notes" not in name}
    parts, W_1, W_2 = known["parts"], known["W1"], known["W2"]
    for activation in ACTIVATIONS:
        found = feed_forward_parts(parts, W_1, known["b1"], W_2, activation)
        torch.testing.assert_close(found, known[f"{activation}/F"], rtol=0, atol=1e-12)
        if activation == "relu":
            continue
        for name, b_up, b_gate in (("", None, None), ("_bias", known["b_up"], known["b_gate"])):
            gated = {"W_gate": known["W_gate"], "b_gate": b_gate}
            found = feed_forward_parts(parts, W_1, b_up, W_2, activation, **gated)
            torch.testing.assert_close(found, known[f"gated_{activation}{name}/F"], rtol=0, atol=1e-12)
