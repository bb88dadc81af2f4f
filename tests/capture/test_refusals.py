"""What cannot be read exactly is refused by name: the module, what was found, the way out."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

import captum_norm
from captum_norm.capture import InexactCaptureError, certificate, recording
from captum_norm.capture.held import HeadValues
from tests.capture.hand_written import BATCH, HEADS, LENGTH, MODEL, Attention, join, weights

close = torch.testing.assert_close


def record(write, **changes):
    attention = Attention(write).eval()
    for name, value in changes.items():
        getattr(attention, name).weight.data.fill_(value)
    x = torch.randn(BATCH, LENGTH, MODEL)
    with recording(sources=(x,)) as records:
        attention(x)
    return records


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda m, x: m.o(join(m.mixed(x)).tanh()), "not seen to enter an output projection"),
        (lambda m, x: join(m.mixed(x)), "not seen to enter an output projection"),
        (lambda m, x: m.o(join(m.mixed(x)) + x), "not seen to enter an output projection"),
        (lambda m, x: m.o(join(m.mixed(x)).cumsum(1)), "not seen to enter an output projection"),
        (lambda m, x: m.o(F.dropout(join(m.mixed(x)), 0.5, training=True)), "not seen to enter an output projection"),
        (lambda m, x: m.o(m.norm(join(m.mixed(x))).flip(1)), "a LayerNorm stands between"),
        (lambda m, x: m.o(join(F.scaled_dot_product_attention(*m.split(x), dropout_p=0.5))), "call model.eval()"),
        (
            lambda m, x: m.o(join((weights(*m.split(x)[:2])[..., None] * m.split(x)[2][:, :, None]).sum(3))),
            "multiplied with the values and summed by hand",
        ),
    ],
    ids=["nonlinear", "no projection", "something added", "sum over queries", "dropout", "late norm", "sdpa dropout",
         "product by hand"],
)  # fmt: skip
def test_what_is_not_linear_or_not_visible_is_refused_by_name(write, reason):
    with pytest.raises(InexactCaptureError, match=reason) as caught:
        record(write)
    assert str(caught.value).startswith("Attention (call 0): ")
    assert caught.value.call.name == "Attention"


def _scaled(m, x):
    return torch.sigmoid(m.v(x))


def test_mixed_values_that_are_added_to_themselves_are_refused_for_that_and_the_factor_is_a_gate():
    """The way out gives the same model, and is read."""
    twice = lambda m, x: m.o((lambda y: y - y * _scaled(m, x))(join(m.mixed(x))))  # noqa: E731
    once = lambda m, x: m.o(join(m.mixed(x)) * (1 - _scaled(m, x)))  # noqa: E731
    with pytest.raises(InexactCaptureError, match=r"values y are added to themselves .* factor once, y \* \(1 - g\)"):
        record(twice)
    assert record(once)[0].gate is not None
    attention, x = Attention(twice), torch.randn(BATCH, LENGTH, MODEL)
    close(attention(x), once(attention, x))


class Grid(nn.Module):
    """Attention over rows and over columns of a grid of positions, side by side; in modules of their own or not."""

    def __init__(self, own: bool) -> None:
        super().__init__()
        self.rows, self.columns = (Attention(lambda m, x: m.o(join(m.mixed(x)))) for _ in range(2))
        self.own = own

    def forward(self, x):
        count = len(x)
        run = (lambda m, x: m(x)) if self.own else (lambda m, x: m.write(m, x))
        over_rows = run(self.rows, x.view(count * 2, 3, MODEL)).view(x.shape)
        columns = x.view(count, 2, 3, MODEL).transpose(1, 2)
        over_columns = run(self.columns, columns.reshape(count * 3, 2, MODEL)).view(count, 3, 2, MODEL)
        return x + (over_rows + over_columns.transpose(1, 2).reshape(x.shape))


def test_attention_over_rows_and_columns_side_by_side_is_refused_for_what_it_is_and_in_modules_of_its_own_is_read():
    x = torch.randn(2, 6, MODEL)
    of_sum = r"adds up what 2 output projections give.* module of its own"
    with pytest.raises(InexactCaptureError, match=of_sum) as why, recording(sources=(x,)):
        Grid(own=False)(x)
    assert "Something else" not in str(why.value)
    with recording(sources=(x,)) as records:
        Grid(own=True)(x)
    assert [one.weights.shape[-1] for one in records] == [3, 2]


def _relative(m, x):
    q, k, v = m.split(x)
    alpha, distance = weights(q, k), (torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)).clamp(-2, 2) + 2
    return m.o(join(alpha @ v + torch.einsum("bhqk,qke->bhqe", alpha, m.o.weight[:, :4][distance])))


def _two_sets_of_values(m, x):
    q, k, v = m.split(x)
    alpha = weights(q, k)
    return m.o(join(alpha @ v + alpha @ k))


@pytest.mark.parametrize("write", [_relative, _two_sets_of_values], ids=["relative values", "two sets"])
def test_weights_that_meet_two_sets_of_values_are_refused_by_name(write):
    with pytest.raises(InexactCaptureError, match="its weights meet two sets of values that are added up"):
        record(write)


def test_two_softmaxes_of_which_one_looks_at_what_the_model_holds_are_two_calls():
    def write(m, x):
        q, k, v = m.split(x)
        memory = m.o.weight[:LENGTH, :4].detach().expand(BATCH, HEADS, LENGTH, 4)
        return m.o(join(weights(q, k) @ v + weights(q, memory) @ memory))

    assert len(record(write)) == 2


def test_a_whole_model_under_vmap_is_refused_by_name():
    attention = Attention(lambda m, x: m.o(join(m.mixed(x))))
    model = nn.Sequential(nn.Linear(MODEL, MODEL), attention)
    method = captum_norm.AttentionNorm(lambda x: torch.vmap(lambda one: x[:1] + model(one[None])[0])(x))
    with pytest.raises(InexactCaptureError, match=r"runs under torch\.vmap, out of sight; write the axis out"):
        method.attribute(torch.randn(BATCH, LENGTH, MODEL), target=(0, 0, 0))


@pytest.mark.parametrize("position", [True, 1.0, [1.5], slice(0, 2)])
def test_a_position_of_another_kind_is_refused_before_the_model_runs(position):
    """Within an operator that the model runs torch would say that its operands are of unsupported types."""
    model = nn.Sequential(*(Attention(lambda m, x: m.o(join(m.mixed(x)))) for _ in "ab"))
    model.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    with pytest.raises(TypeError, match="position should be None, an integer"):
        captum_norm.AttentionNorm(model).attribute(torch.randn(BATCH, LENGTH, MODEL), position=position)


def test_values_overwritten_before_the_projection_are_refused():
    def write(m, x):
        q, k, v = m.split(x)
        mixed = weights(q, k) @ v
        v.mul_(2)
        return m.o(join(mixed))

    with torch.no_grad(), pytest.raises(InexactCaptureError, match="overwritten in place"):
        record(write)


def test_not_a_number_is_named():
    with pytest.raises(InexactCaptureError, match="not finite"):
        record(lambda m, x: m.o(join(m.mixed(x))), v=float("nan"))
    with pytest.raises(InexactCaptureError, match="not finite"):
        record(lambda m, x: m.o(join(m.mixed(x))), o=float("inf"))


def test_refusals_can_be_collected_instead_of_raised():
    attention, found = Attention(lambda m, x: m.o(join(m.mixed(x)).tanh())), []
    x = torch.randn(BATCH, LENGTH, MODEL)
    with recording(sources=(x,), on_inexact=found.append) as records:
        attention(x)
    assert records == []
    assert [type(error) for error in found] == [InexactCaptureError]


def test_a_softmax_over_classes_is_no_attention_call():
    prototypes = torch.randn(4, 8)
    with recording() as records:
        torch.randn(3, 4).softmax(-1) @ prototypes
    assert records == []


def test_a_softmax_that_mixes_streams_of_one_position_is_no_attention_call():
    def write(m, x):
        streams = x.unsqueeze(2).expand(-1, -1, 3, -1)
        alpha = torch.randn(BATCH, LENGTH, 3, 3).softmax(-1)
        return m.o(join(m.mixed((alpha @ streams).sum(2))))

    (found,) = record(write)
    assert found.weights.shape == (BATCH, HEADS, LENGTH, LENGTH)


@pytest.mark.parametrize(
    "disturb",
    [
        lambda r: {"weights": r.weights.flip(2)},
        lambda r: {"weights": r.weights.roll(1, 1)},
        lambda r: {"values": r.values.flip(2)},
        lambda r: {"W_O": r.W_O.flip(0)},
        lambda r: {"W_O": r.W_O * 1.001},
        lambda r: {"weights": r.weights + 1e-3},
    ],
    ids=["rows flipped", "heads rolled", "values swapped", "heads of W_O swapped", "W_O scaled", "weights off"],
)
def test_the_certificate_catches_a_wrong_record(disturb):
    (right,) = record(lambda m, x: m.o(join(m.mixed(x))))
    r = certificate.Probe().direction(MODEL, right.weights)

    def along_r(weights, values, W_O):
        return certificate.predicted(weights, HeadValues(values), certificate.read_along(W_O, r), None)

    parts = {"weights": right.weights, "values": right.values, "W_O": right.W_O}
    truth = along_r(**parts)
    error = certificate.relative_error(along_r(**parts | disturb(right)), truth, float(truth.abs().max()))
    assert error > certificate.tolerance_for(torch.float32, LENGTH)


def small_attention_beside(bias):
    attention, x = Attention(lambda m, x: m.o(join(m.mixed(x)))), torch.randn(BATCH, LENGTH, MODEL)
    attention.v.weight.data.mul_(0.01)
    attention.v.bias.data.zero_()
    attention.o.bias.data.normal_(std=bias)
    with torch.no_grad(), recording(sources=(x,)) as records:
        attention(x)
    return records[0].certificate


@pytest.mark.parametrize("bias", [1.0, 30.0])
def test_a_bias_much_larger_than_the_attention_part_is_no_error_of_the_record(bias):
    certificate = small_attention_beside(bias)
    assert float(certificate) <= certificate.tolerance <= 0.1


def test_an_attention_part_that_is_lost_beside_its_bias_is_refused():
    with pytest.raises(InexactCaptureError, match="do not reproduce the projection's output"):
        small_attention_beside(1e5)


def test_the_tolerance_grows_with_the_bias_and_no_further_than_rounding_does():
    attention, x = Attention(lambda m, x: m.o(join(m.mixed(x)))), torch.randn(BATCH, LENGTH, MODEL)
    attention.o.bias.data.normal_(std=100)
    tolerances = []
    with torch.no_grad(), recording(lambda record: tolerances.append(record.certificate.tolerance), sources=(x,)):
        attention(x)
    assert 1e-5 < tolerances[0] < 1e-2


@pytest.mark.parametrize("write", ["counted", "uncounted"])
def test_a_projection_changed_between_recordings_is_read_anew(write):
    attention, x = Attention(lambda m, x: m.o(join(m.mixed(x)))), torch.randn(BATCH, LENGTH, MODEL)
    for _ in range(2):
        with torch.no_grad(), recording(sources=(x,)) as records:
            attention(x)
        assert torch.equal(records[0].W_O.flatten(0, 1), attention.o.weight.t())
        (attention.o.weight if write == "counted" else attention.o.weight.data).detach().mul_(3)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_is_refused_with_the_way_out():
    flex = pytest.importorskip("torch.nn.attention.flex_attention").flex_attention

    def write(m, x):
        return m.o(join(flex(*m.split(x))))

    with torch.no_grad(), pytest.raises(InexactCaptureError, match="attn_implementation='sdpa' or 'eager'"):
        record(write)


def test_an_error_of_the_model_is_passed_on_as_it_is():
    class Unhappy(nn.Module):
        def forward(self, x):
            Attention(lambda m, x: m.o(join(m.mixed(x))))(x)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"), recording():
        Unhappy()(torch.randn(BATCH, LENGTH, MODEL))


def test_heads_and_length_of_the_fixture_are_not_ambiguous():
    assert len({BATCH, HEADS, LENGTH, MODEL}) == 4


class Beside(nn.Module):
    """An ordinary layer, and one that cannot be read: beside it for nothing, or added to the second class alone."""

    def __init__(self, used):
        super().__init__()
        torch.manual_seed(0)
        self.ordinary, self.unread = (nn.MultiheadAttention(8, 2, batch_first=True) for _ in range(2))
        self.first, self.second, self.used = nn.Linear(8, 1), nn.Linear(8, 1), used
        self.eval()

    def forward(self, x):
        read, unread = x + self.ordinary(x, x, x)[0], x + self.unread(x, x, x)[0].tanh()
        q = k = v = unread
        unread = unread + ((q @ k.mT).softmax(-1)[..., None] * v[:, None]).sum(2)
        second = read + unread if self.used else read
        return torch.cat([self.first(read[:, 0]), self.second(second[:, 0])], 1)


@pytest.mark.parametrize("method", ["AttentionNorm", "AttentionWeights", "AttentionRollout", "AttentionRelevance"])
def test_a_call_that_cannot_be_read_matters_where_what_is_explained_rests_on_it(method):
    x = torch.randn(1, 4, 8)
    unused, used = (getattr(captum_norm, method)(Beside(used)) for used in (False, True))
    assert unused.attribute(x, target=0).shape == x.shape
    with pytest.raises(InexactCaptureError, match="multiplied with the values and summed by hand"):
        used.attribute(x, target=1)
    if method == "AttentionRelevance":
        with pytest.raises(InexactCaptureError, match="multiplied with the values and summed by hand"):
            used.attribute_each(x, targets=[0, 1])
