"""Weights, masks and tensors in formats of their own are read as the module applies them, or refused by name."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right, causal_upper_left

from captum_norm import ALTI, AttentionNorm, DecompX, GlobEnc
from captum_norm.capture import InexactCaptureError, recording
from tests.architectures import ARCHITECTURES, ids
from tests.capture.hand_written import LENGTH, MODEL, Attention, join


class EightBits(Tensor):
    """A weight as quantisation libraries keep it: integers and a scale for each row, known to ``linear`` only."""

    @staticmethod
    def __new__(cls, weight, rounds_inputs=False):
        return Tensor._make_wrapper_subclass(cls, weight.shape, dtype=weight.dtype)

    def __init__(self, weight, rounds_inputs=False):
        self.scale = weight.abs().amax(1, keepdim=True) / 127
        self.integers, self.rounds_inputs = (weight / self.scale).round().to(torch.int8), rounds_inputs

    def plain(self):
        return self.integers * self.scale

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is F.linear:
            x, weight, bias = (*args, *(kwargs or {}).values(), None)[:3]
            if weight.rounds_inputs:
                step = x.abs().amax(-1, keepdim=True).clamp_min(1e-9) / 127
                x = (x / step).round() * step
            return F.linear(x, weight.plain(), bias)
        return super().__torch_function__(func, types, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return args[0]
        raise NotImplementedError(f"{func} of eight bits")


def quantised(model, rounds_inputs=False):
    for module in model.modules():
        if isinstance(module, nn.Linear):
            weight = EightBits(module.weight.detach(), rounds_inputs)
            del module.weight
            module.weight = weight
    return model


def attention(write=lambda m, x: m.o(join(m.mixed(x)))):
    torch.manual_seed(0)
    return Attention(write).eval()


def recorded(model, x):
    with torch.no_grad(), recording(sources=(x,)) as records:
        model(x)
    return records[0]


def test_a_packed_weight_is_read_as_it_is_applied():
    x, model = torch.randn(2, LENGTH, MODEL), quantised(attention())
    record = recorded(model, x)
    assert torch.allclose(record.W_O.flatten(0, 1), model.o.weight.plain().t(), atol=1e-6)
    assert float(record.certificate) < 1e-5 < record.certificate.tolerance < 1.2e-5


def test_what_a_format_rounds_widens_the_tolerance_by_as_much_and_no_more():
    x, model = torch.randn(2, LENGTH, MODEL), quantised(attention(), rounds_inputs=True)
    record = recorded(model, x)
    assert 1e-4 < float(record.certificate) <= record.certificate.tolerance < 0.03
    weight = model.o.weight.plain()
    weight[:, 0] = 0  # the one large input has no part in what is written, but sets the step of all others
    model.o.weight, model.v.weight = EightBits(weight, True), nn.Parameter(model.v.weight.plain())
    model.v.weight.data[0] *= 1e4
    with pytest.raises(InexactCaptureError, match=r"its output projection is in tests's EightBits, whose rounding"):
        recorded(model, x)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_dynamic_int8_of_torch_is_its_own_dequantised_matrix():
    weight, bias = torch.randn(MODEL, MODEL), torch.randn(MODEL)
    coded = torch.quantize_per_tensor(weight, float(weight.abs().max()) / 127, 0, torch.qint8)
    packed = torch.ops.quantized.linear_prepack(coded, bias)
    model = attention(lambda m, x: torch.ops.quantized.linear_dynamic(join(m.mixed(x)), packed))
    record = recorded(model, torch.randn(2, LENGTH, MODEL))
    assert torch.allclose(record.W_O.flatten(0, 1), coded.dequantize().t(), atol=1e-5)
    assert torch.allclose(record.b_O, bias)
    assert record.certificate.tolerance < 0.05
    x = torch.randn(2, LENGTH, MODEL)  # it is no part that could not be looked into
    expected = AttentionNorm(attention(lambda m, x: join(m.mixed(x)) @ coded.dequantize().t() + bias)).attribute(x)
    assert torch.allclose(AttentionNorm(model).attribute(x), expected, rtol=0.05, atol=0.01)


def test_values_in_half_precision_before_a_wider_projection_are_allowed_their_own_rounding():
    def write(m, x):
        q, k, v = (t.bfloat16() for t in m.split(x))
        return m.o(join(F.scaled_dot_product_attention(q, k, v)).float())

    x, model = torch.randn(2, LENGTH, MODEL), attention(write)
    assert float(recorded(model, x).certificate) > 1e-4
    expected = AttentionNorm(attention()).attribute(x)
    assert torch.allclose(AttentionNorm(model).attribute(x), expected, rtol=0.03, atol=0.01)


def test_half_precision_inside_a_model_whose_output_is_wider_is_allowed_its_rounding():
    model, given = ARCHITECTURES["BERT"].build().float(), ids(2, 6)
    expected = DecompX(model).attribute(given, target=1)
    model.bfloat16()
    scores = DecompX(lambda tokens: model(tokens).logits.float()).attribute(given, target=1)
    assert torch.allclose(scores, expected, rtol=0, atol=0.05 * float(expected.abs().max()))


def test_a_last_reader_that_is_not_known_is_named():
    model = attention(lambda m, x: join(m.mixed(x)).int().float() @ m.o.weight)
    with pytest.raises(InexactCaptureError, match=r"last read by operation 'int' in 'Attention' \(Attention\)"):
        recorded(model, torch.randn(1, LENGTH, MODEL))


def test_decompx_holds_a_packed_weight_fixed_and_refuses_one_that_rounds_its_inputs():
    plain, given = ARCHITECTURES["BERT"].build().float(), ids(2, 6)
    model = quantised(ARCHITECTURES["BERT"].build().float())
    for name, module in plain.named_modules():
        if isinstance(module, nn.Linear):
            module.weight.data = model.get_submodule(name).weight.plain()
    expected = DecompX(plain).attribute(given, target=1)
    assert torch.allclose(DecompX(model).attribute(given, target=1), expected, atol=1e-5)
    with pytest.raises(ValueError, match="rounds what it multiplies, too"):
        DecompX(quantised(ARCHITECTURES["BERT"].build().float(), rounds_inputs=True)).attribute(given, target=1)


@pytest.mark.parametrize(("bias", "offset"), [(causal_upper_left, 0), (causal_lower_right, 2)])
def test_the_causal_biases_of_torch_are_read_as_the_masks_they_stand_for(bias, offset):
    def write(m, x):
        q, k, v = m.split(x)
        return m.o(join(F.scaled_dot_product_attention(q[:, :, :3], k, v, attn_mask=bias(3, LENGTH))))

    record = recorded(attention(write), torch.randn(2, LENGTH, MODEL))
    assert torch.equal(record.weights[0, 0] != 0, torch.ones(3, LENGTH, dtype=torch.bool).tril(offset))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_nested_tensors_are_refused_by_name():
    def write(m, x):
        nested = torch.nested.nested_tensor([x[0], x[1, :3]], layout=torch.jagged)
        q, k, v = (f(nested).unflatten(-1, [3, 4]).transpose(1, 2) for f in (m.q, m.k, m.v))
        return m.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2))

    with pytest.raises(InexactCaptureError, match=r"works on a nested tensor.*to_padded_tensor"):
        recorded(attention(write), torch.randn(2, LENGTH, MODEL))


def test_autocast_inside_the_forward_gives_what_the_model_gives_without_up_to_its_rounding():
    model, given = ARCHITECTURES["BERT"].build().float(), ids(2, 6)

    def half(tokens):
        with torch.autocast("cpu", torch.bfloat16):
            return model(tokens).logits

    for method in (AttentionNorm, GlobEnc, ALTI):
        scores, expected = (method(forward).attribute(given) for forward in (half, model))
        assert torch.allclose(scores, expected, rtol=0, atol=0.03 * float(expected.max())), method.__name__
    scores, expected = (DecompX(forward).attribute(given, target=1) for forward in (half, model))
    assert torch.allclose(scores, expected, rtol=0, atol=0.05 * float(expected.abs().max()))


def test_an_exported_program_is_read_and_a_traced_one_refused():
    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.attention, self.head = nn.Embedding(9, MODEL), attention(), nn.Linear(MODEL, 3)

        def forward(self, tokens):
            return self.head(self.attention(self.table(tokens))[:, 0])

    model, given = Classifier().eval(), torch.randint(0, 9, (2, LENGTH))
    exported = torch.export.export(model, (given,)).module()
    assert torch.equal(AttentionNorm(exported).attribute(given), AttentionNorm(model).attribute(given))
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        traced = torch.jit.trace(model, given)
    with pytest.raises(ValueError, match=r"TorchScript.*torch\.export"):
        AttentionNorm(traced).attribute(given)
