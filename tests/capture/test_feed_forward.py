"""Feed-forward parts are read off the running model, whatever they are made of, and proved; others are refused."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from captum_norm import ALTI, AttentionBlockNorm, GlobEnc, LayerAttentionBlockNorm, attention_maps
from captum_norm.capture import recording
from captum_norm.functional import feed_forward_parts
from captum_norm.functional.block import Block
from captum_norm.functional.feed_forward import activated
from captum_norm.functional.feed_forward_block import FeedForward, feed_forward_quantities, feed_forward_vectors
from tests.architectures import ARCHITECTURES
from tests.attr.models import ids
from tests.attr.test_alti_logit import decoder
from tests.capture.test_blocks import block_of, recorded, vectors_of
from tests.capture.written_blocks import BLOCKS, MODEL, Layer

READ = {
    "BERT": ("gelu", False), "RoBERTa": ("gelu", False), "ModernBERT": ("gelu", True), "GPT-2": ("gelu_new", False),
    "Llama": ("silu", True), "Gemma-2": ("gelu_new", True), "T5": ("relu", False), "BART": ("gelu", False),
    "BLOOM": ("bloom_gelu", False),
}  # fmt: skip


def records_of(name):
    if name == "BLOOM":
        model, inputs = decoder("BLOOM")[0], {"input_ids": ids(2, 6) % 40}
    else:
        model, inputs = ARCHITECTURES[name].build(), ARCHITECTURES[name].batch()
    with torch.no_grad(), recording(blocks=True) as records:
        model(**inputs)
    return records


def whole(record):
    block = block_of(record)
    return Block(
        "test", record.weights, record.values, record.W_O, block.residual, block.norm, block.second_norm, record.gate,
        block.inner, block.residual_key,
    )  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_parts_of_all_keys_are_what_the_model_gave_out_less_what_it_gives_without_them(name):
    records = [record for record in records_of(name) if record.call.kind == "cross" or name not in ("T5", "BART")]
    for record in records:
        seen = block_of(record).part
        assert seen is not None, block_of(record).no_part
        part = seen.proved
        assert (part.activation, part.W_gate is not None) == READ[name]
        found = torch.zeros_like(seen.added)
        for b, q, k, F, _ in feed_forward_vectors(whole(record), part):
            found[b, q] += F.sum(1)
            assert F.shape[1] == k.stop - k.start
        size = float(seen.added.abs().max())
        computed_in = 1e-6 if name in ("Llama", "Gemma-2", "T5") else 1e-12  # whose norms compute in float32
        torch.testing.assert_close(part.output(), seen.added, rtol=0, atol=computed_in * size)
        torch.testing.assert_close(found, part.output() - without_keys(record, part), rtol=0, atol=1e-11 * size)


def without_keys(record, part):
    """What the part gives out where only biases reach it, with every divisor as it was; the definition, by hand."""
    u = vectors_of(record.but(block=_before_norm(record))).sum(2)
    rest = part.state.double() - u
    rest = rest if part.before is None else part.before(rest) + (0 if part.before.bias is None else part.before.bias)

    def linear(x, W, b):
        return nn.functional.linear(x, W, b)

    act = {"gelu": nn.functional.gelu, "silu": nn.functional.silu, "relu": torch.relu}.get(
        part.activation, partial(activated, part.activation)
    )
    hidden = linear(rest, part.W_1, part.b_1)
    hidden = act(hidden) if part.W_gate is None else act(linear(rest, part.W_gate, part.b_gate)) * hidden
    out = linear(hidden, part.W_2, part.b_2)
    return out if part.after is None else part.after(out) + (0 if part.after.bias is None else part.after.bias)


def _before_norm(record):
    return replace(block_of(record), norm=None)


def test_each_vector_is_the_integral_of_its_share():
    """Against ``feed_forward_parts`` of the vectors themselves, query by query, biases on the way in b_1."""
    for records in (*map(records_of, ("BERT", "GPT-2", "Llama")), [record_with(Fused())]):
        for record in records:
            part, block = block_of(record).part.proved, whole(record)
            u = vectors_of(record.but(block=_before_norm(record)))
            y = u
            if part.before is not None:
                y = part.before.fold(u) / part.before.deviation[:, :, None, None]
            rest = part.read() - y.sum(2)
            for b, q, k, F, _ in feed_forward_vectors(block, part):
                for row in range(len(F)):
                    i = q.start + row
                    given = {"W_1": part.W_1, "W_2": part.W_2 / part.scale, "activation": part.activation}
                    b_1 = rest[b, i] @ part.W_1.mT + (0 if part.b_1 is None else part.b_1)
                    b_gate = None
                    if part.W_gate is not None:
                        b_gate = rest[b, i] @ part.W_gate.mT + (0 if part.b_gate is None else part.b_gate)
                        b_gate, given["W_gate"] = b_gate * part.scale, part.W_gate * part.scale
                    expected = feed_forward_parts(y[b, i], b_1=b_1, b_gate=b_gate, **given)
                    torch.testing.assert_close(F[row], expected[k], rtol=1e-9, atol=1e-12)


class Fused(nn.Module):
    """One projection makes gate and up, as in Phi-3; the activation is written by hand and in place."""

    def __init__(self):
        super().__init__()
        self.both, self.down = nn.Linear(MODEL, 16), nn.Linear(8, MODEL, bias=False)

    def forward(self, x):
        gate, up = self.both(x).chunk(2, dim=-1)
        return self.down(up.mul_(gate * torch.sigmoid(1.702 * gate)))


def part_of(feed_forward, write="pre_layer_norm"):
    return block_of(record_with(feed_forward, write))


def record_with(feed_forward, write="pre_layer_norm"):
    torch.manual_seed(0)
    layer = Layer(BLOCKS[write][0])
    layer.__dict__["ff"] = feed_forward.double() if isinstance(feed_forward, nn.Module) else feed_forward
    [record] = recorded(layer.double().eval(), torch.randn(2, 5, MODEL).double())
    return record


def test_gate_and_up_may_be_one_projection_and_the_activation_written_by_hand():
    part = part_of(Fused()).part.proved
    assert (part.activation, part.scale, tuple(part.W_1.shape)) == ("silu", 1.702, (8, MODEL))


@pytest.mark.parametrize(
    ("feed_forward", "write", "found"),
    [
        (nn.Sequential(nn.Linear(MODEL, 8), nn.Tanh(), nn.Linear(8, MODEL)), "pre_layer_norm", "do not make what it"),
        (lambda x: x * torch.sigmoid(x), "pre_layer_norm", "not two projections"),
        (nn.Linear(MODEL, MODEL), "pre_layer_norm", "not two projections"),
        (nn.Linear(MODEL, MODEL), "several_feed_forward_parts_with_norms", "several feed-forward parts"),
        (nn.Linear(MODEL, MODEL), "parallel_residual_and_attention_first", "no key is in it but the position itself"),
        (nn.Linear(MODEL, MODEL), "post_layer_norm_and_no_feed_forward_part", "no feed-forward part"),
    ],
)
def test_what_is_no_such_part_is_refused_with_the_reason(feed_forward, write, found):
    block = part_of(feed_forward, write)
    if block.part is None:
        assert found in block.no_part
    else:
        with pytest.raises(ValueError, match=found):
            _ = block.part.proved


def test_what_only_reads_a_projection_of_the_stream_is_no_part():
    """Embeddings divided by their length, as in CLIP."""
    model, inputs = ARCHITECTURES["BERT"].build(), ARCHITECTURES["BERT"].batch()
    head = nn.Linear(16, 16).to(next(model.parameters()))

    def embedded(input_ids):
        projected = head(model(input_ids, output_hidden_states=True).hidden_states[-1][:, 0])
        return projected / projected.square().sum(-1, keepdim=True).sqrt()

    scores = GlobEnc(embedded).attribute(inputs["input_ids"], target=0)
    torch.testing.assert_close(scores, GlobEnc(model).attribute(inputs["input_ids"], target=0))


def test_a_mixture_of_experts_and_a_parallel_part_are_refused_with_the_reason():
    for name, reason in (("Mixtral", "mixture of experts"), ("GPT-NeoX", "in parallel")):
        for record in records_of(name):
            assert reason in block_of(record).no_part


def vectors_behind(record):
    """F_ij and t_ij whole, (batch, query, key[ + 1], model)."""
    block = whole(record)
    t = vectors_of(record)
    F = torch.zeros_like(t)
    for b, q, k, part, _ in feed_forward_vectors(block, block_of(record).part.proved):
        F[b, q, k] = part
    return F, t


@pytest.mark.parametrize("name", ["BERT", "GPT-2", "Gemma-2"])
def test_the_four_scopes_are_lengths_of_the_vectors_on_their_way(name):
    names = ("res_ln_norms", "ff_norms", "ff_res_norms", "ff_res_ln_norms")
    maps = attention_maps(ARCHITECTURES[name].build(), ARCHITECTURES[name].batch(), names)
    for layer, record in enumerate(records_of(name)):
        F, t = vectors_behind(record)
        last, norm = F + t, block_of(record).second_norm
        behind = last if norm is None else norm.fold(last) / norm.deviation[:, :, None, None]
        for quantity, vectors in zip(names, (t, F, last, behind), strict=True):
            found = getattr(maps, quantity)[layer]
            torch.testing.assert_close(found.double(), vectors.norm(dim=-1), rtol=1e-6, atol=1e-9)


@pytest.mark.filterwarnings("ignore:alti. no input brings the output nearer")
@pytest.mark.parametrize("name", ["BERT", "GPT-2"])
def test_classes_go_on_through_the_part_if_they_are_told_to(name):
    model, inputs = ARCHITECTURES[name].build(), ARCHITECTURES[name].batch()
    ids_, by_hand = inputs["input_ids"], []
    maps = attention_maps(model, inputs, ("ff_res_ln_norms", "ff_res_norms"))
    for record in records_of(name):
        F, t = vectors_behind(record)
        norm, behind = block_of(record).second_norm, block_of(record).behind[:, :, None].double()
        parts = F + t if norm is None else norm.fold(F + t) / norm.deviation[:, :, None, None]
        nearer = (behind.abs().sum(-1) - (behind - parts).abs().sum(-1)).clamp_min(0)
        by_hand.append(nearer / nearer.sum(-1, keepdim=True))
    first, second = maps.ff_res_ln_norms
    near = {"rtol": 1e-6, "atol": 1e-9}
    asked = {"position": "all"}
    torch.testing.assert_close(GlobEnc(model, feed_forward=True).attribute(ids_, **asked), second @ first, **near)
    mean = AttentionBlockNorm(model, feed_forward=True).attribute(ids_, **asked)
    torch.testing.assert_close(mean, (first + second) / 2, **near)
    layer = next(module for module in model.modules() if isinstance(module, nn.ModuleList))[1]
    of_layer = LayerAttentionBlockNorm(model, layer, layer_norm=False, feed_forward=True).attribute(ids_)
    torch.testing.assert_close(of_layer, maps.ff_res_norms[1], **near)
    alti = ALTI(model, feed_forward=True).attribute(ids_, **asked)
    torch.testing.assert_close(alti, (by_hand[1] @ by_hand[0]).to(alti), **near)


def test_a_decoders_part_belongs_to_its_cross_attention():
    model, inputs = ARCHITECTURES["BART"].build(), ARCHITECTURES["BART"].batch()

    def run(source, prefix):
        return model(input_ids=source, decoder_input_ids=prefix).logits[:, -1]

    both = (inputs["input_ids"], inputs["decoder_input_ids"])
    source, prefix = ALTI(run, feed_forward=True).attribute(both, target=3)
    torch.testing.assert_close(source.sum(1) + prefix.sum(1), torch.ones(2).double())


def test_what_cannot_be_taken_in_is_refused_by_name():
    model, inputs = ARCHITECTURES["Mixtral"].build(), ARCHITECTURES["Mixtral"].batch()
    for method in (ALTI(model, feed_forward=True), GlobEnc(model, feed_forward=True)):
        with pytest.raises(ValueError, match=r"layers.*self_attn.* two projections with an activation"):
            method.attribute(inputs["input_ids"])
    with pytest.raises(ValueError, match=r"no chosen call has ff_norms: .*mixture of experts"):
        attention_maps(model, inputs, ("weights", "ff_norms"))
    with pytest.raises(ValueError, match="feed_forward=True needs residual=True"):
        AttentionBlockNorm(model, residual=False, feed_forward=True)


def test_a_case_solved_by_hand():
    """One head that looks at both keys alike, identity everywhere, ReLU(2 x - 1): pre-activations share its slope."""
    weights, values = torch.full((1, 1, 1, 2), 0.5).double(), torch.tensor([[[[2.0], [4.0]]]]).double()
    residual = torch.tensor([[[1.0]]]).double()
    block = Block("test", weights, values, torch.eye(1)[None].double(), residual, residual_key=torch.tensor([0]))
    one = torch.ones(1, 1).double()
    part = FeedForward(
        2 * one, -one[0], one, None, "relu", 1.0, None, None, None, None, state=torch.tensor([[[4.0]]]).double()
    )  # u = (2, 2), P = 8, ReLU(7) = 7 of which each has half
    found = feed_forward_quantities(block, part, ("ff_norms", "ff_res_norms", "ff_res_ln_norms"))
    assert found["ff_norms"].tolist() == [[[3.5, 3.5]]]
    assert found["ff_res_norms"].tolist() == found["ff_res_ln_norms"].tolist() == [[[5.5, 5.5]]]


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_models_in_less_precision_give_what_float64_gives(dtype, near):
    names = ("ff_norms", "ff_res_ln_norms")
    architecture = ARCHITECTURES["Llama"]
    exact = attention_maps(architecture.build(), architecture.batch(), names)
    found = attention_maps(architecture.build().to(dtype), architecture.batch(dtype), names)
    for name in names:
        for one, expected in zip(getattr(found, name), getattr(exact, name), strict=True):
            assert one.dtype == torch.float32
            torch.testing.assert_close(one.double(), expected.double(), rtol=0, atol=near * float(expected.max()))
