"""The block around attention: what is found where, that it adds up to what the model computed, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_norm import AttentionBlockNorm
from captum_norm.capture import AttentionBlock, AttentionRecord, recording
from captum_norm.functional import FrozenNorm
from tests.capture.hand_written import BATCH, LENGTH, MODEL, WRITTEN, Attention, weights
from tests.capture.written_blocks import BLOCKS, Found, Layer
from tests.functional.definition import normalised

close = torch.testing.assert_close


def recorded(model: nn.Module, *args: Any, **inputs: Any) -> list[AttentionRecord]:
    """The records of a forward whose outputs are the bits they were."""
    sources = [value for value in (*args, *inputs.values()) if isinstance(value, Tensor)]
    with torch.no_grad():
        expected = model(*args, **inputs)
        with recording(sources=sources, blocks=True) as records:
            output = model(*args, **inputs)
    assert torch.equal(first_of(output), first_of(expected))
    return list(records)


def first_of(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def block_of(record: AttentionRecord) -> AttentionBlock:
    assert record.block is not None, f"{record.call.name}: {record.no_block}"
    return record.block


def form_of(norm: FrozenNorm | None) -> str:
    if norm is None:
        return ""
    return "layer norm" if norm.centred else "scale" if norm.deviation is None else "rms norm"


def found_in(block: AttentionBlock) -> Found:
    forms = (form_of(norm) for norm in (block.inner, block.norm, block.second_norm))
    return Found(*forms, block.feed_forward, block.normalised)


def through(vectors: Tensor, norm: FrozenNorm | None) -> Tensor:
    return vectors if norm is None else normalised(vectors, norm)


def vectors_of(record: AttentionRecord) -> Tensor:
    """What each key adds to each query, (batch, query, key[ + 1], model): the definition, vector by vector."""
    block = block_of(record)
    mixed = record.weights.double()[..., None] * record.values.double()[:, :, None]
    if record.gate is not None:
        mixed = mixed * record.gate.double()[:, :, :, None]
    vectors = torch.einsum("bhqke,hed->bqkd", mixed, record.W_O.double())
    vectors = through(vectors, block.inner)
    residual = block.residual.double()[:, :, None]
    if isinstance(block.residual_key, str) and block.residual_key == "column":
        vectors = torch.cat([vectors, residual], dim=2)
    else:
        own = torch.arange(vectors.shape[1]) if isinstance(block.residual_key, str) else block.residual_key
        index = own.expand(vectors.shape[:2])[:, :, None, None].expand_as(residual)
        vectors = vectors.scatter_add(2, index, residual)
    return through(vectors, block.norm)


def biases_of(record: AttentionRecord) -> Tensor:
    """What is no key's: b_O behind all norms, and their betas, (batch, query, model)."""
    block = block_of(record)
    total = torch.zeros_like(block.residual, dtype=torch.float64)[:, :, None]
    if record.b_O is not None:
        total = total + record.b_O.double()
    for norm in (block.inner, block.norm):
        total = through(total, norm)
        if norm is not None and norm.bias is not None:
            total = total + norm.bias.double()
    return total[:, :, 0]


def check_reconstruction(record: AttentionRecord, tolerance: float = 1e-9) -> None:
    """Vectors and biases add up to what the block gave out, where it gave out anything (windows may hold padding)."""
    output = block_of(record).output.double()
    kept = output.any(-1)
    found = vectors_of(record).sum(2) + biases_of(record)
    close(found[kept], output[kept], rtol=tolerance, atol=tolerance * float(output.abs().max()))


# ---------------------------------------------------------------------------------------------------- by hand


def stack(name: str, dtype: torch.dtype = torch.float64, layers: int = 2) -> tuple[nn.Sequential, Tensor]:
    """Layers written that way, and an input."""
    model = nn.Sequential(*(Layer(BLOCKS[name][0]) for _ in range(layers))).to(dtype).eval()
    return model, torch.randn(BATCH, LENGTH, MODEL, dtype=dtype)


def in_input_order(tensor: Tensor, record: AttentionRecord) -> Tensor:
    """Rows (batch, query) in the order of the input; windows are examples of their own, and may hold padding."""
    if tensor.shape[:2] != (BATCH, LENGTH):
        return tensor.reshape(BATCH, -1, MODEL)[:, :LENGTH]
    assert record.queries is not None
    return tensor[:, record.queries.index.argsort()]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", BLOCKS)
def test_residual_norms_and_output_are_the_models_own(name, dtype):
    model, x = stack(name, dtype)
    records = recorded(model, x)
    assert len(records) == 2
    exact = {"rtol": 0, "atol": 1e-14 if dtype is torch.float64 else 1e-5}
    for layer, record in zip(model, records, strict=True):
        block = block_of(record)
        close(in_input_order(block.residual, record), layer.noted[-1]["residual"], **exact)
        close(in_input_order(block.output, record), layer.noted[-1]["output"], **exact)
        if block.second_norm is not None and block.second_norm.state is not None and "scaled_residual" not in name:
            expected = layer.noted[-1]["layer"].double()
            found = in_input_order(block.second_norm.output(), record)
            kept = expected.any(-1)  # rows that the model silences afterwards
            close(found[kept], expected[kept], rtol=1e-5, atol=exact["atol"] * 100)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("name", BLOCKS)
def test_what_stands_where_is_found(name, layers):
    model, x = stack(name, layers=layers)
    *others, last = (found_in(block_of(record)) for record in recorded(model, x))
    expected = BLOCKS[name][1]
    if name == "conformer" and layers == 1:
        expected = Found()  # the norm at the end of the only layer may be the model's own
    assert last == expected
    later = Found(expected.inner, expected.norm, feed_forward="later")
    assert others in ([], [expected], [later] if not expected.feed_forward else [expected])


@pytest.mark.parametrize("name", BLOCKS)
def test_vectors_and_biases_add_up_to_what_the_block_gave_out(name):
    model, x = stack(name)
    for record in recorded(model, x):
        check_reconstruction(record)
        assert block_of(record).certificate.error <= 1e-14
        assert block_of(record).certificate.covers == ("residual", "norms", "output")


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.05), (torch.float16, 5e-3)], ids=str)
@pytest.mark.parametrize("name", BLOCKS)
def test_models_in_half_precision_are_read_as_precisely_as_they_compute(name, dtype, tolerance):
    if name == "padded_rows_silenced" or "eps_beside" in name:
        pytest.skip("multiplies with a mask in its own dtype, or with a deviation, that half precision rounds away")
    model, x = stack(name, dtype)
    for record in recorded(model, x):
        check_reconstruction(record, tolerance)


def test_one_module_for_all_layers_has_a_block_for_each_call():
    """As in ALBERT."""
    layer = Layer(BLOCKS["post_layer_norm"][0]).double().eval()
    x = torch.randn(BATCH, LENGTH, MODEL).double()
    records = recorded(nn.Sequential(layer, layer, layer), x)
    assert [record.call.call for record in records] == [0, 1, 2]
    for noted, record in zip(layer.noted[-3:], records, strict=True):
        assert torch.equal(block_of(record).residual, noted["residual"])
        assert torch.equal(block_of(record).output, noted["output"])
        check_reconstruction(record)


def test_the_norm_at_the_end_of_a_pre_norm_model_belongs_to_no_block():
    for name in ("pre_layer_norm", "parallel_residual_and_attention_first", "norm_of_attention_alone"):
        model, x = stack(name)
        for record in recorded(nn.Sequential(*model, nn.LayerNorm(MODEL).double()), x):
            assert found_in(block_of(record)) == BLOCKS[name][1]


def test_the_norm_at_the_end_of_layers_of_attention_alone_belongs_to_them_if_they_have_no_other():
    """Nothing follows that would tell; a norm before attention or behind it tells that the last one is the model's."""

    def normed_alone(m: Layer, x: Tensor) -> Tensor:
        return x + m.rms_norms[0](m.attention(x))

    for write, norm in (
        (normed_alone, ""),
        (BLOCKS["pre_layer_norm_and_no_feed_forward_part"][0], ""),
        (lambda m, x: x + m.attention(x), "layer norm"),
    ):
        model = nn.Sequential(Layer(write), nn.LayerNorm(MODEL)).double().eval()
        (record,) = recorded(model, torch.randn(BATCH, LENGTH, MODEL).double())
        assert form_of(block_of(record).norm) == norm
        check_reconstruction(record)


def test_padding_that_is_cut_off_again_has_no_deviation_to_be_divided_by():
    model, x = stack("in_windows_with_a_norm_behind")
    for layer in model:
        for norm in layer.layer_norms:
            norm.eps = 0.0
    for record in recorded(model, x):
        check_reconstruction(record)


def test_a_part_that_is_small_beside_its_residual_is_known_to_the_digits_of_their_sum():
    """What is overwritten in place is the rest of a sum, rounded as the sum was."""
    model, x = stack("the_residual_added_in_place", torch.float32)
    with torch.no_grad():
        for layer in model:
            layer.attention.o.weight *= 1e-4
            layer.attention.o.bias *= 1e-4
    for record in recorded(model, x):
        check_reconstruction(record, 1e-6)


def test_what_is_made_of_neither_stream_nor_residual_is_no_feed_forward_part():
    places = torch.randn(BATCH, LENGTH, MODEL).double()

    def write(m: Layer, x: Tensor) -> Tensor:
        return x + m.attention(m.layer_norms[0](x)) + places.sin()

    model = nn.Sequential(Layer(write)).double().eval()
    (record,) = recorded(model, torch.randn(BATCH, LENGTH, MODEL).double())
    assert found_in(block_of(record)) == Found(feed_forward="")
    check_reconstruction(record)


def test_a_residual_that_is_weighted_is_how_the_stream_goes_on():
    """As in Doge: each block begins with a scale of what the last one gave out."""

    def weighted(m: Layer, x: Tensor) -> Tensor:
        n, n2, *_ = m.layer_norms
        x = m.note("residual", m.scale * x) + m.attention(n(x))
        return m.note("output", x * m.scale) + m.ff(n2(x))

    model = nn.Sequential(Layer(weighted), Layer(weighted)).double().eval()
    for layer, record in zip(model, recorded(model, torch.randn(BATCH, LENGTH, MODEL).double()), strict=True):
        check_reconstruction(record)
        close(block_of(record).residual, layer.noted[-1]["residual"])
        close(block_of(record).output, layer.noted[-1]["output"])
        assert form_of(block_of(record).norm) == "scale"


def test_the_norm_before_the_first_layer_belongs_to_no_block():
    model, x = stack("no_norm")
    for record in recorded(nn.Sequential(nn.LayerNorm(MODEL).double(), *model), x):
        assert found_in(block_of(record)) == Found(normalised=False)


def test_records_are_the_same_with_and_without_gradients_and_in_inference_mode():
    model, x = stack("post_layer_norm_written_out")
    expected = recorded(model, x)
    for mode in (torch.enable_grad(), torch.inference_mode()):
        with mode, recording(sources=(x,), blocks=True) as records:
            model(x)
        for a, b in zip(records, expected, strict=True):
            assert torch.equal(block_of(a).output, block_of(b).output)
            assert not block_of(a).output.requires_grad
            assert found_in(block_of(a)) == found_in(block_of(b))


def test_gradients_through_a_model_that_is_read_are_bit_equal():
    model, x = stack("the_residual_added_in_place")

    def gradients(blocks: bool) -> list[Tensor]:
        model.zero_grad()
        with recording(blocks=blocks):
            model(x).square().sum().backward()
        return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]

    assert all(torch.equal(a, b) for a, b in zip(gradients(False), gradients(True), strict=True))


def test_without_blocks_nothing_is_read_and_the_record_says_so():
    model, x = stack("pre_layer_norm")
    with recording() as records:
        model(x)
    assert all(record.block is None and record.no_block == "blocks were not recorded" for record in records)


def test_queries_can_be_cut_to_a_few_rows():
    for name in ("post_layer_norm_written_out", "sandwich_of_rms_norms", "post_layer_norm"):
        model, x = stack(name)
        rows = torch.tensor([[4, 1], [0, 3]])
        for record in recorded(model, x):
            few = block_of(record).at(rows)
            vectors = vectors_of(record)
            cut = record.weights.gather(2, rows[:, None, :, None].expand(-1, 3, -1, LENGTH))
            found = vectors_of(record.but(weights=cut, block=few))
            close(found, vectors[torch.arange(BATCH)[:, None], rows])
            close(few.output, block_of(record).output[torch.arange(BATCH)[:, None], rows])


# ---------------------------------------------------------------------------------------------------- refused


def no_residual(m: Layer, x: Tensor) -> Tensor:
    return m.layer_norms[0](m.attention(x))


def another_residual(m: Layer, x: Tensor) -> Tensor:
    """As in MobileBERT: the queries are made of another projection of the input than attention is added to."""
    return m.layer_norms[0](m.attention(m.down(m.up(x))) + m.down(torch.tanh(m.up(x))))


def a_square_between(m: Layer, x: Tensor) -> Tensor:
    return x + m.attention(x).square()


def a_gate_of_the_token_between(m: Layer, x: Tensor) -> Tensor:
    return x + m.attention(x) * torch.sigmoid(m.down(torch.tanh(m.up(x))))


def added_with_alpha(m: Layer, x: Tensor) -> Tensor:
    return torch.add(x, m.attention(x), alpha=2)


def both_overwritten(m: Layer, x: Tensor) -> Tensor:
    x = x.clone()
    attended = m.attention(x)
    y = x + attended
    x.zero_(), attended.zero_()
    return y


def a_norm_overwritten(m: Layer, x: Tensor) -> Tensor:
    normed = m.layer_norms[0](x + m.attention(x))
    x = normed @ torch.eye(MODEL, dtype=x.dtype)
    normed.zero_()
    return x


def noise_on_a_norm(m: Layer, x: Tensor) -> Tensor:
    attended = m.attention(x)
    normed = m.layer_norms[0](attended)
    attended.zero_()
    return x + normed


def a_norm_across_positions(m: Layer, x: Tensor) -> Tensor:
    return nn.functional.layer_norm((x + m.attention(x)).mT, (LENGTH,), torch.arange(1.0, LENGTH + 1).to(x)).mT


def a_norm_bent(m: Layer, x: Tensor) -> Tensor:
    return torch.tanh(m.layer_norms[0](x + m.attention(x)))


def another_function_for_a_norm(m: Layer, x: Tensor) -> Tensor:
    return m.scale * torch.tanh(0.5 * (x + m.attention(x)))


def a_norm_of_some_features(m: Layer, x: Tensor) -> Tensor:
    return m.layer_norms[0](x + m.attention(x)).masked_fill(m.scale < 0, 0)


def norms_of_features_apart(m: Layer, x: Tensor) -> Tensor:
    y = x + m.attention(x)
    return torch.cat([nn.functional.layer_norm(part, (MODEL // 2,)) for part in y.chunk(2, -1)], -1)


def in_pieces(m: Layer, x: Tensor) -> Tensor:
    attended = m.attention(x)
    return torch.cat([x[:, :2] + attended[:, :2], x[:, 2:] + attended[:, 2:]], 1)


def attention_twice(m: Layer, x: Tensor) -> Tensor:
    attended = m.attention(x)
    return x + attended + attended


def attention_doubled(m: Layer, x: Tensor) -> Tensor:
    attended = m.attention(x)
    return x + (attended + attended)


def an_adapter_of_what_was_written(m: Layer, x: Tensor) -> Tensor:
    attended = m.attention(x)
    return x + (attended + m.ff(attended))


def an_adapter_of_what_was_written_behind_the_sum(m: Layer, x: Tensor) -> Tensor:
    attended = m.attention(x)
    return x + attended + m.ff(attended)


def the_residual_twice(m: Layer, x: Tensor) -> Tensor:
    return x + m.attention(x) + x


def the_residual_doubled_behind(m: Layer, x: Tensor) -> Tensor:
    return (x + m.attention(x)) + (x + x)


def a_sum_of_two_halves(m: Layer, x: Tensor) -> Tensor:
    attended = m.attention(x)
    return m.layer_norms[0]((x / 2 + attended / 2) + (x / 2 + attended / 2))


def another_sum_that_nobody_reads(m: Layer, x: Tensor) -> Tensor:
    attended = m.attention(x)
    m.noted[-1]["aside"] = 3 * x + attended
    return x + attended


REFUSED = {
    attention_twice: "what W_O wrote is added to more than one state",
    attention_doubled: "what W_O wrote is added to something that was made of it",
    an_adapter_of_what_was_written: "what W_O wrote is added to something that was made of it",
    an_adapter_of_what_was_written_behind_the_sum: "made of what attention gave out alone is added to the stream",
    the_residual_twice: "the residual is added to the stream more than once",
    the_residual_doubled_behind: "the residual is added to the stream more than once",
    a_sum_of_two_halves: "what W_O wrote is added to more than one state",
    another_sum_that_nobody_reads: "what W_O wrote is added to more than one state",
    in_pieces: "added to the residual stream in pieces",
    no_residual: "was not seen to be added to a residual stream",
    another_residual: "was not seen to be added to a residual stream",
    a_square_between: "was not seen to be added to a residual stream",
    a_gate_of_the_token_between: "was not seen to be added to a residual stream",
    added_with_alpha: "was not seen to be added to a residual stream",
    both_overwritten: "overwritten in place",
    a_norm_overwritten: "overwritten in place",
    noise_on_a_norm: "overwritten in place before its norm",
    a_norm_bent: "no norm, scale or move of it that is known (tanh)",
    another_function_for_a_norm: "no norm, scale or move of it that is known (tanh)",
    a_norm_of_some_features: "no norm, scale or move of it that is known (masked_fill)",
    a_norm_across_positions: f"{LENGTH} numbers, a factor or bias for each position",
}


AGAIN = {
    "subtracted": lambda m, x, y: (x + y) - x / 2,
    "in place": lambda m, x, y: (x + y).sub_(x / 2),
    "with alpha": lambda m, x, y: torch.add(x + y, x, alpha=0.5),
    "by addcmul": lambda m, x, y: torch.addcmul(x + y, x, m.scale),
    "by lerp": lambda m, x, y: torch.lerp(x + y, x, 0.3),
    "stacked": lambda m, x, y: torch.stack([x + y, x]).sum(0),
    "turned round": lambda m, x, y: (x + y) + -(x * 0.5),
    "times a buffer, before": lambda m, x, y: (y + x * m.scale.data) + x,
    "in halves": lambda m, x, y: (x + y) + torch.cat(x.chunk(2, -1), -1),
}


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("again", AGAIN)
def test_a_residual_that_is_added_again_in_any_way_is_refused(again, behind):
    def write(m: Layer, x: Tensor) -> Tensor:
        state = AGAIN[again](m, x, m.attention(m.layer_norms[0](x)))
        return state + m.ff(m.layer_norms[1](state)) if behind else state

    model = nn.Sequential(Layer(write), Layer(write)).double().eval()
    for record in recorded(model, torch.randn(BATCH, LENGTH, MODEL).double()):
        assert "the residual is added to the stream more than once" in record.no_block


def test_a_feed_forward_part_with_a_residual_of_its_own_is_no_part_of_the_block():
    def write(m: Layer, x: Tensor) -> Tensor:
        state = x + m.attention(m.layer_norms[0](x))
        normed = m.layer_norms[1](state)
        return state + (normed + m.ff(normed))

    model = nn.Sequential(Layer(write), Layer(write)).double().eval()
    for record in recorded(model, torch.randn(BATCH, LENGTH, MODEL).double()):
        assert "two states of the stream behind attention are added up" in record.no_block


@pytest.mark.parametrize("again", [lambda s, f: s + f, lambda s, f: s.clone().add_(f), lambda s, f: s - f], ids="+i-")
def test_two_feed_forward_parts_that_read_one_state_are_several(again):
    def write(m: Layer, x: Tensor) -> Tensor:
        state = x + m.attention(m.layer_norms[0](x))
        normed = m.layer_norms[1](state)
        return again(state + m.ff(normed), m.down(torch.sin(m.up(normed))))

    model = nn.Sequential(Layer(write), Layer(write)).double().eval()
    for record in recorded(model, torch.randn(BATCH, LENGTH, MODEL).double()):
        assert record.block.feed_forward == "several" or "several" in record.block.no_part


def test_a_bias_on_the_stream_is_no_norm():
    def write(m: Layer, x: Tensor) -> Tensor:
        state = x + m.attention(m.layer_norms[0](x))
        return (state + m.scale) + m.ff(m.layer_norms[1](state))

    model = nn.Sequential(Layer(write), Layer(write)).double().eval()
    assert [record.block.norm for record in recorded(model, torch.randn(BATCH, LENGTH, MODEL).double())] == [None] * 2


@pytest.mark.parametrize("write", REFUSED, ids=lambda write: write.__name__)
def test_a_block_that_cannot_be_read_is_none_with_a_reason(write):
    model = nn.Sequential(Layer(write), Layer(write)).double().eval()
    for record in recorded(model, torch.randn(BATCH, LENGTH, MODEL).double()):
        assert record.block is None
        assert REFUSED[write] in record.no_block


def test_a_bias_in_the_shape_of_the_residual_is_no_residual():
    def write(m: Layer, x: Tensor) -> Tensor:
        state = x + (m.attention(m.layer_norms[0](x)) + m.scale.expand_as(x))
        return state + m.ff(m.layer_norms[1](state))

    model = nn.Sequential(Layer(write), Layer(write)).double().eval()
    records = recorded(model, torch.randn(BATCH, LENGTH, MODEL).double())
    assert [(record.no_block, record.block.feed_forward) for record in records] == [("", "behind")] * 2


def by_hand(x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()


IN_FRONT = {
    "a module": (lambda m, x: m.layer_norms[0](x), lambda y: y.round().long().to(y)),
    "by hand": (lambda m, x: by_hand(x), lambda y: y.round().long().to(y)),
    "through complex numbers": (lambda m, x: nn.functional.normalize(x, dim=-1), lambda y: torch.fft.fft(y).real),
}


@pytest.mark.parametrize(("norm", "within"), IN_FRONT.values(), ids=IN_FRONT)
def test_a_norm_in_front_of_the_feed_forward_part_is_none_behind_attention(norm, within):
    """Also where the part is not followed back to the stream, as through integers."""

    def write(m: Layer, x: Tensor) -> Tensor:
        state = x + m.attention(norm(m, x))
        return state + m.down(within(m.up(norm(m, state))))

    model = nn.Sequential(Layer(write), Layer(write)).double().eval()
    records = recorded(model, torch.randn(BATCH, LENGTH, MODEL).double())
    assert records[0].block.norm is None


@pytest.mark.parametrize(("lost", "operation"), [
    (norms_of_features_apart, "layer_norm"),
    (lambda m, x: torch.lerp(x + m.attention(x), m.layer_norms[0](x), 0.3), "lerp"),
    (lambda m, x: torch.zeros_like(x).addcmul_(m.layer_norms[0](x + m.attention(x)), m.scale), "addcmul_"),
    (lambda m, x: (y := x + m.attention(x)) * 2 - m.layer_norms[0](y), "sub"),
    (lambda m, x: (y := x + m.attention(x)) + m.layer_norms[0](y), "add"),
])  # fmt: skip
def test_a_stream_that_goes_on_as_something_else_is_seen_where_the_next_layer_takes_it_up(lost, operation):
    model = nn.Sequential(*(Layer(lost) for _ in range(3))).double().eval()
    *before, _ = recorded(model, torch.randn(BATCH, LENGTH, MODEL).double())
    named = f"no norm, scale or move of it that is known ({operation})"
    assert all(record.block is None and named in record.no_block for record in before)


@pytest.mark.parametrize("features", [
    lambda m, x, y: torch.cat([y[..., :4], x[..., 4:]], -1),
    lambda m, x, y: y.masked_fill(m.scale < 0, 0),
    lambda m, x, y: torch.where(m.scale < 0, x, y),
])  # fmt: skip
def test_other_features_are_no_form_though_the_blocks_before_have_a_norm(features):
    def some(m: Layer, x: Tensor) -> Tensor:
        return features(m, x, m.layer_norms[0](x + m.attention(x)))

    usual = BLOCKS["post_layer_norm_and_no_feed_forward_part"][0]
    model = nn.Sequential(*map(Layer, (usual, some, usual))).double().eval()
    first, second, _ = recorded(model, torch.randn(BATCH, LENGTH, MODEL).double())
    assert form_of(block_of(first).norm) == "layer norm"
    assert "no norm, scale or move of it" in second.no_block


def test_a_projection_between_layers_belongs_to_no_block():
    def projected(m: Layer, x: Tensor) -> Tensor:
        x = m.note("output", m.layer_norms[0](m.note("residual", x) + m.attention(x)))
        return torch.tanh(x @ m.attention.o.weight)

    model = nn.Sequential(Layer(projected), Layer(projected)).double().eval()
    for layer, record in zip(model, recorded(model, torch.randn(BATCH, LENGTH, MODEL).double()), strict=True):
        close(block_of(record).output, layer.noted[-1]["output"])


def test_a_sum_with_something_else_leads_past_a_block_and_leaves_its_norm():
    """As in Funnel's decoder, which adds the first layers' states to the last ones'."""

    def skipped(m: Layer, x: Tensor) -> Tensor:
        y = m.note("output", m.layer_norms[0](m.note("residual", x) + m.attention(x)))
        return y + torch.ones_like(y).cumsum(1)

    model = nn.Sequential(Layer(skipped), Layer(skipped)).double().eval()
    for layer, record in zip(model, recorded(model, torch.randn(BATCH, LENGTH, MODEL).double()), strict=True):
        assert form_of(block_of(record).norm) == "layer norm"
        close(block_of(record).output, layer.noted[-1]["output"])


def test_rows_beside_others_and_rows_left_out_are_still_the_stream():
    def beside(m: Layer, x: Tensor) -> Tensor:
        x = m.note("output", m.layer_norms[0](m.note("residual", x) + m.attention(x)))
        row = torch.ones(BATCH, 1, MODEL, dtype=x.dtype)
        return torch.cat([row, x[:, 1:]], 1).masked_fill(x[..., :1] > 9, 0)

    model = nn.Sequential(Layer(beside), Layer(beside)).double().eval()
    for layer, record in zip(model, recorded(model, torch.randn(BATCH, LENGTH, MODEL).double()), strict=True):
        assert form_of(block_of(record).norm) == "layer norm"
        close(block_of(record).output, layer.noted[-1]["output"])


def _in_place(x: Tensor, attended: Tensor) -> Tensor:
    return x.add_(attended)


def _read_by_a_view(x: Tensor, attended: Tensor) -> Tensor:
    view = x.view(x.shape)
    x.add_(attended)
    return view


def _written_through_a_view(x: Tensor, attended: Tensor) -> Tensor:
    x.view(x.shape).add_(attended)
    return x


def _read_in_detached_memory(x: Tensor, attended: Tensor) -> Tensor:
    detached = x.detach()
    x.add_(attended)
    return detached


def _flat(x: Tensor, attended: Tensor) -> Tensor:
    x.view(-1).add_(attended.reshape(-1))
    return x


@pytest.mark.parametrize("add", [_in_place, _read_by_a_view, _written_through_a_view, _read_in_detached_memory, _flat])
def test_a_residual_in_overwritten_memory_is_that_of_a_new_tensor_or_not_known(add):
    """What a view of it held before attention was added is no state of the stream any more."""

    def model(add) -> nn.Module:
        torch.manual_seed(0)
        layers = (Layer(lambda m, x: m.layer_norms[0](add(x.clone(), m.attention(x)))) for _ in range(2))
        return nn.Sequential(*layers).double().eval()

    x = torch.randn(BATCH, LENGTH, MODEL).double()
    for record, plain in zip(recorded(model(add), x), recorded(model(torch.add), x), strict=True):
        if record.block is not None:
            close(vectors_of(record), vectors_of(plain))
            close(record.block.output, block_of(plain).output)
        assert record.block is not None or add is _flat


def test_attention_by_itself_has_no_block():
    (record,) = recorded(Attention(WRITTEN["plain"]), torch.randn(BATCH, LENGTH, MODEL))
    assert record.block is None
    assert "was not seen to be added to a residual stream" in record.no_block


def head_by_head(m: Attention, x: Tensor) -> Tensor:
    q, k, v = m.split(x)
    return m.o(torch.cat([weights(q[:, h], k[:, h]) @ v[:, h] for h in range(q.shape[1])], -1))


def heads_with_keys_of_their_own(m: Attention, x: Tensor) -> Tensor:
    q, k, v = m.split(x)
    return m.o(torch.cat([weights(q[:, h], k[:, h, h:]) @ v[:, h, h:] for h in range(q.shape[1])], -1))


def test_heads_that_are_mixed_one_by_one_have_the_block_of_one_product():
    layer, x = Layer(BLOCKS["pre_layer_norm"][0]).double(), torch.randn(BATCH, LENGTH, MODEL).double()
    whole = recorded(nn.Sequential(layer, layer), x)
    layer.attention.write = head_by_head
    records = recorded(nn.Sequential(layer, layer), x)
    assert len(records) == len(whole) == 2
    for record, expected in zip(records, whole, strict=True):
        assert record.block is not None, record.no_block
        for name in ("residual", "attended", "output"):
            torch.testing.assert_close(getattr(record.block, name), getattr(expected.block, name))


def test_heads_with_keys_of_their_own_have_no_block_each():
    """Their residual is one, and belongs to the sum of all of them."""
    layer = Layer(BLOCKS["pre_layer_norm"][0])
    layer.attention.write = heads_with_keys_of_their_own
    records = recorded(nn.Sequential(layer, layer).double(), torch.randn(BATCH, LENGTH, MODEL).double())
    assert len(records) == 6
    for record in records:
        assert record.block is None
        assert "more at once than the heads of this call" in record.no_block


def packed(m: Attention, x: Tensor) -> Tensor:
    q, k, v = m.split(x)
    pieces = [weights(q[:, :, i], k[:, :, i]) @ v[:, :, i] for i in (slice(0, 2), slice(2, LENGTH))]
    return m.o(torch.cat(pieces, 2).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("name", ["pre_layer_norm", "post_rms_norm", "sandwich_of_rms_norms", "layer_scale"])
def test_calls_that_share_one_projection_by_rows_have_a_block_each(name):
    """Packed pictures: attention runs piece by piece, W_O once over all of them."""
    model, x = stack(name)
    for layer in model:
        layer.attention.write = packed
    records = recorded(model, x)
    assert [tuple(record.weights.shape[2:]) for record in records] == [(2, 2), (3, 3)] * 2
    for number, record in enumerate(records):
        check_reconstruction(record)
        noted = model[number // 2].noted[-1]
        rows = slice(2, LENGTH) if number % 2 else slice(0, 2)
        close(block_of(record).residual, noted["residual"][:, rows])
        close(block_of(record).output, noted["output"][:, rows])
        assert found_in(block_of(record)) == BLOCKS[name][1]


@pytest.mark.parametrize(
    "added",
    [
        lambda attention, x: x.roll(1, 1) + attention(x, x, x)[0],
        lambda attention, x: x + attention(x.roll(1, 1), x, x)[0],
        lambda attention, x: x + attention(x, x, x)[0].roll(1, 1),
    ],
    ids=["a residual of others", "queries of others", "attention moved"],
)
def test_a_residual_of_other_positions_is_none(added):
    """Each row would be taken for its own key, which it is not."""

    class Moved(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(MODEL, 3, batch_first=True)

        def forward(self, x):
            return added(self.attention, x)

    (record,) = recorded(Moved().eval(), torch.randn(BATCH, LENGTH, MODEL))
    assert record.block is None
    assert record.no_block == "what W_O wrote is added to rows of other positions"


class HalvedByItsData(nn.Module):
    """A post-norm layer whose norm's output is given another memory by the feed-forward part's residual."""

    def __init__(self, halves: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm, self.up, self.down, self.halves = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8), halves

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x + self.attention(x, x, x)[0])
        out = self.down(torch.relu(self.up(y)))
        if self.halves:
            y.data = y * 0.5
            y = y * 2
        return y + out


def test_a_norm_gave_out_what_it_gave_out_whatever_memory_its_tensor_has_now():
    x = torch.randn(2, 5, 8)
    found, expected = (
        AttentionBlockNorm(HalvedByItsData(halves).eval().requires_grad_(False)).attribute(x, target=(0, 0))
        for halves in (True, False)
    )
    close(found, expected)
