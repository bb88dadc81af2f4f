"""With which weights does learning begin, so that it takes seconds and not hours?  With heads that look up.

To find what stood behind a word before, a model needs a head that copies each token to the one behind it, and in a
later layer a head whose queries match what was copied there ("induction").  Such pairs form late and suddenly in
training; here they are written into the first weights, roughly, and everything is learnt from there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_LOOKS = 7.0  # how strongly the first head's queries and keys ask for the neighbour
_MATCHES = 1.5  # and those of later heads for what was copied
_STEPS = 4.0  # how strongly an encoder's first heads ask for the neighbour
_WRITES = 0.15  # how much heads write at first
_LOUDER = 5.0  # how much more where a norm stands behind the residual, which is longer then


def begin_decoder(model: Any) -> None:
    """A Llama with biases whose first head copies the token before, and whose later layers look it up.

    Rotary positions turn queries and keys by an angle for each step.  Constant queries, turned back by one step, agree
    best with constant keys at the token before; the match of words goes through the slow half of the angles, which
    hardly turn in texts so short.
    """
    width, size = model.config.hidden_size, model.config.head_dim
    half, first = size // 2, slice(0, size)
    angles = 10000.0 ** (-torch.arange(half) / half)
    slow = torch.cat([torch.arange(half // 2, half), torch.arange(half + half // 2, size)])
    matching = torch.zeros(size, size)
    matching[slow] = _orthogonal(size)[:half] * 2**0.5 * _MATCHES
    copied, place = _orthogonal(width)[:size], _orthogonal(width)[:size]
    fast = half // 3
    with torch.no_grad():
        words = nn.functional.normalize(torch.randn(model.config.vocab_size, width), dim=1)
        model.model.embed_tokens.weight.copy_(words)
        model.lm_head.weight.copy_(words)
        for number, layer in enumerate(model.model.layers):
            attention = layer.self_attn
            if number == 0:
                attention.q_proj.weight[first] *= 0.1
                attention.k_proj.weight[first] *= 0.1
                attention.k_proj.bias[:fast] = _LOOKS
                attention.q_proj.bias[:fast] = _LOOKS * angles[:fast].cos()
                attention.q_proj.bias[half : half + fast] = -_LOOKS * angles[:fast].sin()
                _write(attention.v_proj, attention.o_proj, first, copied, place)
            else:
                attention.q_proj.weight[first] = matching @ copied
                attention.k_proj.weight[first] = matching @ place
                told = _orthogonal(width)[:size]
                _write(attention.v_proj, attention.o_proj, first, told, told)


def begin_encoder(model: Any) -> None:
    """A BERT of four heads: the first two copy the token before and the token behind, later layers match the two.

    Positions, words, what stood before and what stands behind have a quarter of the width each.  Positions are sines
    and cosines, which a head's queries turn by one step.
    """
    width, size = model.config.hidden_size, model.config.hidden_size // 4
    place, word, before, behind = torch.split(_orthogonal(width), size)
    angles = 50.0 ** (-torch.arange(size // 2) / (size // 2))
    turns = torch.arange(model.config.max_position_embeddings)[:, None] * angles
    with torch.no_grad():
        words = nn.functional.normalize(torch.randn(model.config.vocab_size, size), dim=1)
        model.bert.embeddings.word_embeddings.weight.copy_(words @ word)
        positions = torch.cat([turns.cos(), turns.sin()], dim=1) @ place
        model.bert.embeddings.position_embeddings.weight.copy_(positions * (2 / size) ** 0.5)
        for number, layer in enumerate(model.bert.encoder.layer):
            attention, output = layer.attention.self, layer.attention.output.dense
            for head, written, step in ((0, before, angles), (1, behind, -angles)):
                rows = slice(head * size, (head + 1) * size)
                if number == 0:
                    cos, sin = torch.diag(step.cos()), torch.diag(step.sin())
                    turned = torch.cat([torch.cat([cos, sin], 1), torch.cat([-sin, cos], 1)])
                    attention.query.weight[rows] = turned @ place * _STEPS
                    attention.key.weight[rows] = place * _STEPS
                    _write(attention.value, output, rows, word, written * _LOUDER)
                elif head == 0:
                    attention.query.weight[rows] = behind * _MATCHES
                    attention.key.weight[rows] = before * _MATCHES
                    _write(attention.value, output, rows, word, word * _LOUDER)


def _write(values: Any, output: Any, rows: slice, taken: Tensor, given: Tensor) -> None:
    values.weight[rows] = taken
    output.weight[:, rows] = given.T * _WRITES


def _orthogonal(width: int) -> Tensor:
    return torch.linalg.qr(torch.randn(width, width))[0]
