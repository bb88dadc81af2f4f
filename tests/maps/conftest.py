"""Models for maps: one that hands over records, and a small BERT."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from captum_norm.capture import Answer, InexactCaptureError
from captum_norm.maps import attention_maps
from tests.maps.records import IDS, QUANTITIES, record


@pytest.fixture
def emitting(monkeypatch):
    """Makes a model out of records: running it hands them over, as a recording would."""
    receivers = []

    @contextmanager
    def recording(on_record, *, sources=(), model=None, on_inexact=None, blocks=False, beside=(), together=False):
        receivers.append((on_record, on_inexact))
        yield SimpleNamespace(answer=lambda explained, select: Answer(), ends_with=lambda output: None)
        receivers.pop()

    monkeypatch.setattr("captum_norm.capture.running.recording", recording)

    class Emitting(nn.Module):
        def __init__(self, *calls):
            super().__init__()
            self.emitted = calls

        def forward(self, input_ids: Tensor) -> Tensor:
            on_record, on_inexact = receivers[-1]
            for call in self.emitted:
                (on_inexact if isinstance(call, InexactCaptureError) else on_record)(call)
            return input_ids

    return Emitting


@pytest.fixture(scope="module")
def bert() -> BertModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30, hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=16,
        max_position_embeddings=16, attn_implementation="eager",
    )  # fmt: skip
    return BertModel(config).eval()


@pytest.fixture
def saved(emitting, tmp_path):
    gated = record("gated", gate=torch.rand(2, 3, 4, 6, dtype=torch.float64))
    maps = attention_maps(emitting(record("plain"), gated), {"input_ids": IDS}, QUANTITIES)
    path = tmp_path / "maps.safetensors"
    maps.save(path)
    return maps, path
