"""Blocks around attention as people write them: the same few parts, put together in every order we have met.

Every entry of ``BLOCKS`` is a function of a :class:`Layer` and its input; on its way it notes what attention was added
to (``residual``), what became of it (``output``) and of the whole layer (``layer``).  What to find is beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tests.capture.hand_written import MODEL, WRITTEN, Attention

Write = Callable[["Layer", Tensor], Tensor]


class Layer(nn.Module):
    """Attention, four norms of each make, a feed-forward part, and a way to put them together."""

    def __init__(self, write: Write) -> None:
        super().__init__()
        self.attention = Attention(WRITTEN["plain"])
        self.up, self.down = nn.Linear(MODEL, 2 * MODEL), nn.Linear(2 * MODEL, MODEL)
        self.layer_norms = nn.ModuleList(nn.LayerNorm(MODEL, eps=1e-3) for _ in range(4))
        self.rms_norms = nn.ModuleList(nn.RMSNorm(MODEL, eps=1e-3) for _ in range(4))
        self.scale = nn.Parameter(torch.randn(MODEL))
        for norm in (*self.layer_norms, *self.rms_norms):
            nn.init.normal_(norm.weight, 1, 0.3)
        for norm in self.layer_norms:
            nn.init.normal_(norm.bias)
        self.write = write
        self.noted: list[dict[str, Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.noted.append({})
        return self.note("layer", self.write(self, x))

    def note(self, name: str, tensor: Tensor) -> Tensor:
        """Remember a copy of a tensor, out of sight of whoever is watching."""
        with torch._C.DisableTorchFunction():
            self.noted[-1][name] = tensor.detach().clone()
        return tensor

    def note_sum(self, attended: Tensor, x: Tensor) -> None:
        """Remember attention and residual together, which the model never adds by themselves."""
        with torch._C.DisableTorchFunction():
            self.note("output", attended + x)

    def ff(self, x: Tensor) -> Tensor:
        return self.down(torch.tanh(self.up(x)))


@dataclass(frozen=True)
class Found:
    """What should be found: "layer norm", "rms norm", "scale" or "" for each place, and the rest of the block."""

    inner: str = ""
    norm: str = ""
    second: str = ""
    feed_forward: str = "behind"
    normalised: bool = True


POST = Found(norm="layer norm", second="layer norm")
POST_RMS = Found(norm="rms norm", second="rms norm")
PRE = Found()
BLOCKS: dict[str, tuple[Write, Found]] = {}


def written(found: Found) -> Callable[[Write], Write]:
    def register(function: Write) -> Write:
        BLOCKS[function.__name__] = function, found
        return function

    return register


def rms(x: Tensor, norm: nn.Module) -> Tensor:
    """As in Llama."""
    return norm.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.eps))


# ------------------------------------------------------------------------------------------------ norms behind


@written(POST)
def post_layer_norm(m, x):
    n, n2, *_ = m.layer_norms
    x = m.note("output", n(m.attention(m.note("residual", x)) + x))
    return n2(m.ff(x) + x)


@written(POST_RMS)
def post_rms_norm(m, x):
    n, n2, *_ = m.rms_norms
    x = m.note("output", n(m.note("residual", x) + m.attention(x)))
    return n2(x + m.ff(x))


@written(POST_RMS)
def post_rms_norm_written_out(m, x):
    n, n2, *_ = m.rms_norms
    x = m.note("output", rms(m.note("residual", x) + m.attention(x), n))
    return rms(x + m.ff(x), n2)


def _by_hand(x: Tensor, norm: nn.Module) -> Tensor:
    x = x - x.mean(-1, keepdim=True)
    return x * (x.pow(2).mean(-1, keepdim=True) + norm.eps) ** -0.5 * norm.weight + norm.bias


@written(POST)
def post_layer_norm_written_out(m, x):
    n, n2, *_ = m.layer_norms
    x = m.note("output", _by_hand(m.note("residual", x) + m.attention(x), n))
    return _by_hand(x + m.ff(x), n2)


def _post(m: Layer, x: Tensor, normed: Callable[[Tensor, nn.Module], Tensor], norms: nn.ModuleList) -> Tensor:
    x = m.note("output", normed(m.note("residual", x) + m.attention(x), norms[0]))
    return normed(x + m.ff(x), norms[1])


def _by_addcmul(x: Tensor, norm: nn.Module) -> Tensor:
    return torch.addcmul(norm.bias, nn.functional.layer_norm(x, (MODEL,), eps=norm.eps), norm.weight)


@written(POST)
def post_layer_norm_by_addcmul(m, x):
    return _post(m, x, _by_addcmul, m.layer_norms)


def _by_addcdiv(x: Tensor, norm: nn.Module) -> Tensor:
    return torch.addcdiv(torch.zeros_like(x), x, (x.pow(2).mean(-1, keepdim=True) + norm.eps).sqrt()) * norm.weight


@written(POST_RMS)
def post_rms_norm_by_addcdiv(m, x):
    return _post(m, x, _by_addcdiv, m.rms_norms)


def _by_vecdot(x: Tensor, norm: nn.Module) -> Tensor:
    squares = torch.linalg.vecdot(x.conj(), x)[..., None]
    return x * (squares / MODEL + norm.eps).rsqrt() * norm.weight


@written(POST_RMS)
def post_rms_norm_by_vecdot(m, x):
    return _post(m, x, _by_vecdot, m.rms_norms)


@written(POST_RMS)
def post_normalize_negated(m, x):
    x = m.note("output", -nn.functional.normalize(m.note("residual", x) + m.attention(x), dim=-1))
    return -nn.functional.normalize(x + m.ff(x), dim=-1)


@written(POST)
def post_layer_norm_less_a_bias(m, x):
    n, n2, *_ = m.layer_norms
    x = m.note("output", n(m.note("residual", x) + m.attention(x)) - m.scale)
    return n2(x + m.ff(x)) - m.scale


def _by_batch_norm(m: Layer, x: Tensor) -> Tensor:
    n = m.layer_norms[0]
    return nn.functional.batch_norm(x.mT, n.bias, m.scale.exp(), n.weight, m.scale).mT


@written(Found(norm="scale", second="scale", normalised=False))
def post_batch_norm(m, x):
    """As in PatchTST."""
    x = m.note("output", _by_batch_norm(m, m.note("residual", x) + m.attention(x)))
    return _by_batch_norm(m, x + m.ff(x))


def _by_deviation(x: Tensor, norm: nn.Module) -> Tensor:
    return norm.weight * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + norm.eps) + norm.bias


@written(POST)
def post_layer_norm_with_eps_beside_the_deviation(m, x):
    n, n2, *_ = m.layer_norms
    x = m.note("output", _by_deviation(m.note("residual", x) + m.attention(x), n))
    return _by_deviation(x + m.ff(x), n2)


@written(Found(norm="layer norm", feed_forward=""))
def post_layer_norm_and_no_feed_forward_part(m, x):
    return m.note("output", m.layer_norms[0](m.note("residual", x) + m.attention(x)))


@written(POST)
def post_layer_norm_of_a_scaled_residual(m, x):
    n, n2, *_ = m.layer_norms
    """The scale belongs to the stream as it goes on."""
    x = n(m.note("residual", x * 1.7) + m.attention(x))
    return n2(m.note("output", x * 1.7) + m.ff(x))


@written(POST)
def padded_rows_silenced_behind_the_norm(m, x):
    """As in XLM."""
    n, n2, *_ = m.layer_norms
    mask = torch.ones(*x.shape[:2], 1, dtype=x.dtype)
    mask[-1, -2:] = 0
    x = n(m.note("residual", x) + m.attention(x))
    x *= mask
    m.note("output", x)
    return n2(x + m.ff(x)) * mask


@written(POST)
def post_layer_norm_scaled_in_place(m, x):
    n, n2, *_ = m.layer_norms
    x = m.note("output", n(m.note("residual", x) + m.attention(x)).mul_(1.3))
    return n2(x + m.ff(x)).mul_(1.3)


@written(Found(norm="layer norm", feed_forward="several"))
def several_feed_forward_parts_with_norms(m, x):
    n, *others = m.layer_norms
    x = m.note("output", n(m.attention(m.note("residual", x)) + x))
    for norm in others:
        x = norm(m.ff(x) + x)
    return x


# ------------------------------------------------------------------------------------------------ norms before


@written(PRE)
def pre_layer_norm(m, x):
    n, n2, *_ = m.layer_norms
    x = m.note("output", m.note("residual", x) + m.attention(n(x)))
    return x + m.ff(n2(x))


@written(PRE)
def pre_rms_norm(m, x):
    n, n2, *_ = m.rms_norms
    x = m.note("output", m.attention(n(m.note("residual", x))) + x)
    return m.ff(n2(x)) + x


@written(PRE)
def pre_rms_norm_written_out(m, x):
    n, n2, *_ = m.rms_norms
    residual = x
    x = m.note("output", m.note("residual", residual) + m.attention(rms(x, n)))
    residual = x
    return residual + m.ff(rms(x, n2))


@written(Found(feed_forward=""))
def pre_layer_norm_and_no_feed_forward_part(m, x):
    return m.note("output", m.note("residual", x) + m.attention(m.layer_norms[0](x)))


@written(Found(normalised=False))
def no_norm(m, x):
    x = m.note("output", m.note("residual", x) + m.attention(x))
    return x + m.ff(x)


@written(PRE)
def dropout_that_is_off(m, x):
    n, n2, *_ = m.layer_norms

    def drop(t: Tensor) -> Tensor:
        return torch.nn.functional.dropout(t, 0.5, training=m.training)

    x = m.note("output", drop(m.attention(drop(n(m.note("residual", x))))) + x)
    return x + drop(m.ff(drop(n2(x))))


@written(PRE)
def a_half_feed_forward_part_before_and_a_convolution_behind(m, x):
    """As in Conformer, without the norm at its end."""
    n, n2, n3, n4 = m.layer_norms
    x = x + 0.5 * m.ff(n(x))
    x = m.note("output", m.attention(n2(m.note("residual", x))) + x)
    mixed = n3(x)
    x = x + torch.tanh(mixed + mixed.roll(1, 1))
    return x + 0.5 * m.ff(n4(x))


@written(Found(second="layer norm"))
def conformer(m, x):
    n, n2, n3, n4 = m.layer_norms
    x = x + 0.5 * m.ff(n(x))
    x = m.note("output", m.attention(n2(m.note("residual", x))) + x)
    x = x + m.ff(n3(x)).roll(1, 1)
    return n4(x + 0.5 * m.ff(x))


# ------------------------------------------------------------------------------------------------ between


@written(Found(inner="rms norm"))
def sandwich_of_rms_norms(m, x):
    n, n2, n3, n4 = m.rms_norms
    x = m.note("output", m.note("residual", x) + n2(m.attention(n(x))))
    return x + n4(m.ff(n3(x)))


@written(Found(inner="layer norm"))
def sandwich_of_layer_norms_written_out(m, x):
    n, n2, n3, n4 = m.layer_norms
    x = m.note("output", _by_hand(m.attention(_by_hand(m.note("residual", x), n)), n2) + x)
    return x + _by_hand(m.ff(_by_hand(x, n3)), n4)


@written(Found(inner="rms norm"))
def sandwich_with_one_plus_gamma(m, x):
    """As in Gemma: the weight is stored less one, and the norm is computed in float32 at least."""
    wide = torch.promote_types(x.dtype, torch.float32)

    def norm(t: Tensor, by: nn.Module) -> Tensor:
        out = t.to(wide) * torch.rsqrt(t.to(wide).pow(2).mean(-1, keepdim=True) + 1e-6)
        return (out * (1.0 + by.weight.to(wide))).type_as(t)

    n, n2, n3, n4 = m.rms_norms
    residual = x
    x = m.note("output", m.note("residual", residual) + norm(m.attention(norm(x, n)), n2))
    return x + norm(m.ff(norm(x, n3)), n4)


@written(Found(inner="rms norm"))
def norm_of_attention_alone(m, x):
    """As in OLMo 2 and Swin v2: nothing before attention."""
    n, n2, *_ = m.rms_norms
    x = m.note("output", m.note("residual", x) + n(m.attention(x)))
    return x + n2(m.ff(x))


@written(Found(inner="scale"))
def layer_scale(m, x):
    n, n2, *_ = m.layer_norms
    x = m.note("output", m.note("residual", x) + m.scale * m.attention(n(x)))
    return x + m.ff(n2(x)) * m.scale


@written(Found(inner="scale"))
def residual_multiplier(m, x):
    n, n2, *_ = m.rms_norms
    x = m.note("output", m.note("residual", x) + m.attention(n(x)) * 0.3)
    return x + m.ff(n2(x)) * 0.3


@written(Found(inner="scale", norm="layer norm", second="layer norm"))
def a_scale_and_a_norm_behind(m, x):
    n, n2, *_ = m.layer_norms
    x = m.note("output", n(m.note("residual", x) + m.attention(x) / 2))
    return n2(x + m.ff(x) / 2)


@written(Found(inner="scale"))
def a_second_bias(m, x):
    n, n2, *_ = m.layer_norms
    x = m.note("output", m.note("residual", x) + (m.attention(n(x)) * 2 + m.scale))
    return x + m.ff(n2(x))


@written(Found(inner="layer norm"))
def a_norm_and_a_scale_between(m, x):
    n, n2, *_ = m.layer_norms
    x = m.note("output", m.note("residual", x) + n(m.attention(x)) * m.scale)
    return x + m.ff(n2(x))


@written(Found(inner="rms norm"))
def padded_rows_silenced(m, x):
    """One number per row, as that of an RMSNorm that is written out."""
    n, n2, *_ = m.layer_norms
    mask = torch.ones(*x.shape[:2], 1, dtype=x.dtype)
    mask[-1, -2:] = 0
    x = m.note("output", m.note("residual", x) + m.attention(n(x)) * mask)
    return x + m.ff(n2(x))


# ------------------------------------------------------------------------------------------------ in parallel


PARALLEL = Found(feed_forward="beside")


@written(PARALLEL)
def parallel_attention_and_feed_forward_first(m, x):
    """As in GPT-J."""
    normed = m.layer_norms[0](m.note("residual", x))
    attended = m.attention(normed)
    m.note_sum(attended, x)
    return attended + m.ff(normed) + x


@written(PARALLEL)
def parallel_feed_forward_and_attention_first(m, x):
    """As in GPT-NeoX, with a norm for each."""
    n, n2, *_ = m.layer_norms
    attended, forwarded = m.attention(n(m.note("residual", x))), m.ff(n2(x))
    m.note_sum(attended, x)
    return forwarded + attended + x


@written(PARALLEL)
def parallel_residual_and_attention_first(m, x):
    """As in Cohere."""
    normed = m.rms_norms[0](m.note("residual", x))
    attended, forwarded = m.attention(normed), m.ff(normed)
    return m.note("output", x + attended) + forwarded


@written(PARALLEL)
def parallel_feed_forward_before_attention(m, x):
    normed = m.layer_norms[0](m.note("residual", x))
    forwarded = m.ff(normed)
    attended = m.attention(normed)
    m.note_sum(attended, x)
    return (x + attended) + forwarded


@written(Found(inner="layer norm", feed_forward="beside"))
def parallel_with_a_norm_of_attention(m, x):
    n, n2, *_ = m.layer_norms
    normed = n(m.note("residual", x))
    attended = n2(m.attention(normed))
    m.note_sum(attended, x)
    return attended + m.ff(normed) + x


# ------------------------------------------------------------------------------------------------ ways to add and move


@written(PRE)
def added_in_place_to_the_residual(m, x):
    n, n2, *_ = m.layer_norms
    x = m.note("residual", x.clone())
    x += m.attention(n(x))
    m.note("output", x)
    x += m.ff(n2(x))
    return x


@written(PRE)
def the_residual_added_in_place(m, x):
    n, n2, *_ = m.layer_norms
    attended = m.attention(n(m.note("residual", x)))
    attended += x
    m.note("output", attended)
    forwarded = m.ff(n2(attended))
    forwarded.add_(attended)
    return forwarded


@written(POST)
def in_place_with_a_norm_behind(m, x):
    n, n2, *_ = m.layer_norms
    attended = m.attention(m.note("residual", x))
    attended += x
    x = m.note("output", n(attended))
    forwarded = m.ff(x)
    forwarded += x
    return n2(forwarded)


@written(PRE)
def the_residual_overwritten_afterwards(m, x):
    n, n2, *_ = m.layer_norms
    x = m.note("residual", x.clone())
    y = m.note("output", m.attention(n(x)) + x)
    x.zero_()
    return y + m.ff(n2(y))


@written(PRE)
def what_attention_gave_overwritten_afterwards(m, x):
    n, n2, *_ = m.layer_norms
    attended = m.attention(n(m.note("residual", x)))
    y = m.note("output", attended + x)
    attended.zero_()
    return y + m.ff(n2(y))


@written(PRE)
def added_by_name(m, x):
    n, n2, *_ = m.layer_norms
    x = m.note("output", torch.add(input=m.note("residual", x), other=m.attention(n(x))))
    return torch.add(x, m.ff(n2(x)), alpha=1)


@written(PRE)
def position_first_around_attention(m, x):
    n, n2, *_ = m.layer_norms
    x = x.transpose(0, 1).contiguous()
    attended = m.attention(n(x).transpose(0, 1)).transpose(0, 1)
    m.note("residual", x.transpose(0, 1))
    x = x + attended
    m.note("output", x.transpose(0, 1))
    return (x + m.ff(n2(x))).transpose(0, 1)


@written(POST)
def position_first_around_the_feed_forward_part(m, x):
    n, n2, *_ = m.layer_norms
    x = m.note("output", n(m.note("residual", x) + m.attention(x)))
    x = x.transpose(0, 1)
    return n2(x + m.ff(x)).transpose(0, 1)


@written(PRE)
def shifted_for_attention(m, x):
    """As windows that are shifted: attention runs on rolled rows, and the residual is not rolled."""
    n, n2, *_ = m.layer_norms
    attended = m.attention(n(m.note("residual", x)).roll(2, 1)).roll(-2, 1)
    x = m.note("output", x + attended)
    return x + m.ff(n2(x))


@written(POST)
def in_windows_with_a_norm_behind(m, x):
    """Pairs of positions attend among themselves; the last position is padded and cut off again."""
    n, n2, *_ = m.layer_norms
    batch, length, width = m.note("residual", x).shape
    padded = torch.nn.functional.pad(x, (0, 0, 0, length % 2))
    windows = padded.reshape(-1, 2, width)
    attended = m.attention(windows).reshape(batch, -1, width)[:, :length]
    x = m.note("output", n(x + attended))
    return n2(x + m.ff(x))
