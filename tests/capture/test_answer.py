"""What an output was read from is seen in the data flow: rows, all positions, or something that was not followed."""

import pytest
import torch
from torch import nn

from captum_norm import ALTI, AttentionNorm, AttentionRollout, DecompX
from captum_norm.capture import recording
from captum_norm.linear import NotFrozenError

X = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[1.0, 1, 1, 0, 0], [1, 1, 1, 1, 1]])


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()


def answer_of(encoder, read, select=lambda tensor: tensor):
    with torch.no_grad(), recording(sources=(X,)) as recorded:
        explained = read(encoder(X))
        return recorded.answer(explained, select)


ROWS = {
    "the first": (lambda h: h[:, 0], [[0], [0]], [[1.0], [1.0]]),
    "the last, through a head": (lambda h: torch.tanh(h[:, -1]) @ torch.ones(16, 3), [[4], [4]], [[1.0], [1.0]]),
    "one for each example": (lambda h: h[torch.arange(2), torch.tensor([2, 4])], [[2], [4]], [[1.0], [1.0]]),
    "the mean": (lambda h: h.mean(1), [[0, 1, 2, 3, 4]] * 2, [[0.2] * 5] * 2),
    "the mean of real tokens": (
        lambda h: (h * MASK[..., None]).sum(1) / MASK.sum(1, keepdim=True),
        [[0, 1, 2, 3, 4]] * 2, [[1 / 3] * 3 + [0, 0], [0.2] * 5],
    ),
    "a weighted mean": (
        lambda h: (h * torch.tensor([1.0, 2, 3, 4, 0])[:, None].expand(2, 5, 1)).sum(1),
        [[0, 1, 2, 3, 4]] * 2, [[0.1, 0.2, 0.3, 0.4, 0]] * 2,
    ),
    "a loss": (lambda h: nn.functional.cross_entropy(h[:, 1], torch.tensor([0, 1])), [[1], [1]], [[1.0], [1.0]]),
}  # fmt: skip


@pytest.mark.parametrize("what", ROWS)
def test_the_rows_that_an_output_was_read_from_are_seen(encoder, what):
    read, positions, weights = ROWS[what]
    answer = answer_of(encoder, read)
    assert answer.how == "rows"
    assert answer.rows.positions.tolist() == positions
    torch.testing.assert_close(answer.rows.weights.double(), torch.tensor(weights).double())


def test_a_target_chooses_the_row(encoder):
    assert answer_of(encoder, lambda h: h).how == "every position"
    assert answer_of(encoder, lambda h: h, lambda tensor: tensor[:, 3, 1]).rows.positions.tolist() == [[3], [3]]


@pytest.mark.parametrize("count", [2, 3])
def test_of_an_output_that_compares_all_examples_each_has_the_row_that_was_read_of_it(encoder, count):
    pictures = torch.randn(count, 16)
    read = answer_of(encoder, lambda h: (h[torch.arange(2), torch.tensor([2, 4])] @ pictures.T).T)
    assert read.how == "rows"
    assert read.rows.positions.tolist() == [[2], [4]]


@pytest.mark.parametrize("turn", [lambda h: h.roll(1, 1), lambda h: h.flip(1)], ids=["rolled", "turned round"])
def test_rows_that_do_not_lie_as_positions_do_have_neither_first_nor_last(encoder, turn):
    assert answer_of(encoder, turn).how == "out of order"
    assert answer_of(encoder, lambda h: h[:, 1:]).how == "every position"
    assert answer_of(encoder, turn, lambda tensor: tensor[:, 0, 1]).rows.positions.tolist() == [[4], [4]]

    def model(x):
        return turn(encoder(x))

    with pytest.raises(ValueError, match="do not lie in their order"):
        AttentionNorm(model).attribute(X)
    torch.testing.assert_close(
        AttentionNorm(model).attribute(X, position=2), AttentionNorm(encoder).attribute(X, position=2)
    )


@pytest.mark.parametrize("order", [[3, 4, 0, 1, 2], [4, 3, 2, 1, 0], [2, 0, 1, 4, 3]], ids=str)
@pytest.mark.parametrize("method", [AttentionNorm, AttentionRollout, ALTI], ids=lambda method: method.__name__)
def test_positions_are_the_inputs_in_whatever_order_a_model_takes_them(encoder, method, order):
    """As where a picture's cells stand before a text that is given first."""
    back = torch.tensor(order).argsort()

    def model(x):
        return encoder(x[:, order])[:, back]

    for position in (0, 1, -1, [0, 3], torch.tensor([[0, 2], [4, 1]]), "mean", "all", None):
        found, expected = (method(one).attribute(X, position=position, target=(1, 0)) for one in (model, encoder))
        torch.testing.assert_close(found, expected)


OF_OTHER_EXAMPLES = {
    "turned round": lambda h: h.flip(0),
    "that of the best": lambda h: h[h[:, 0, 0].argmax()][None].expand_as(h),
    "that of the first, pooled": lambda h: h.mean(1)[[0, 0]],
    "the class tokens, turned round": lambda h: h[:, 0].roll(1, 0),
}


@pytest.mark.parametrize("read", OF_OTHER_EXAMPLES.values(), ids=OF_OTHER_EXAMPLES)
def test_an_output_that_was_read_from_another_example_is_not_taken_for_its_own(encoder, read):
    with pytest.raises(ValueError, match="which rows the output was read from is not known"):
        AttentionNorm(lambda x: read(encoder(x))).attribute(X, target=0 if read(X).ndim == 2 else (0, 0))
    with pytest.raises(NotFrozenError, match="an example's output depends on what another one was given"):
        DecompX(lambda x: read(encoder(x))).attribute(X, target=0 if read(X).ndim == 2 else (0, 0))


@pytest.mark.parametrize("causal", [False, True])
def test_an_output_without_the_row_that_is_explained_by_default_asks_for_another(encoder, causal):
    mask = nn.Transformer.generate_square_subsequent_mask(5) if causal else None

    def without(rows):
        return lambda x: encoder(x, mask=mask, is_causal=causal)[:, rows]

    has_it, has_not = (slice(1, None), slice(None, -1))[:: 1 if causal else -1]
    assert AttentionNorm(without(has_it)).attribute(X).shape == X.shape
    with pytest.raises(ValueError, match=f"position {4 if causal else 0} is explained by default"):
        AttentionNorm(without(has_not)).attribute(X)
    found, expected = (AttentionNorm(without(rows)).attribute(X, position=2) for rows in (has_not, has_it))
    torch.testing.assert_close(found, expected)


def test_an_output_without_the_class_token_asks_for_a_row(encoder):
    token = nn.Parameter(torch.randn(1, 1, 16))

    def states(x):
        return encoder(torch.cat([token.expand(len(x), 1, 16), x], 1))

    assert AttentionNorm(states).attribute(X).shape == X.shape
    with pytest.raises(ValueError, match=r"no position of the input \(a class token\) is explained by default"):
        AttentionNorm(lambda x: states(x)[:, 1:]).attribute(X)


def test_an_output_with_a_row_for_each_position_of_each_example_asks_for_a_row(encoder):
    with pytest.raises(ValueError, match="which rows the output was read from is not known"):
        AttentionNorm(lambda x: encoder(x).flatten(0, 1)).attribute(X, target=0)


def test_what_was_read_from_several_rows_otherwise_is_not_guessed(encoder):
    assert answer_of(encoder, lambda h: h.amax(1)).how == "unseen"
    assert [mixer.operation for mixer in answer_of(encoder, lambda h: h[:, 0] + h[:, 1]).mixers] == ["add"]


def test_calls_behind_the_read_out_do_not_reach_it(encoder):
    kept = []
    handle = encoder.layers[0].register_forward_hook(lambda module, given, out: kept.append(out))
    with torch.no_grad(), recording(sources=(X,)) as records:
        encoder(X)
        answer = records.answer(kept[0][:, 0], lambda tensor: tensor)
    handle.remove()
    assert [answer.rests_on(record) for record in records] == [True, False]


def test_what_no_call_reaches_says_nothing(encoder):
    assert answer_of(encoder, lambda h: X * 2).how == answer_of(encoder, lambda h: None).how == "no attention"
