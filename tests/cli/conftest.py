"""Tiny models of every kind the commands meet, saved as users save theirs, and a text."""

import pytest
import torch
from transformers import (
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    MambaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTModel,
)

from tests.cli.models import PIECES, SIZES, bert_config, bert_tokenizer, gpt_tokenizer


@pytest.fixture(autouse=True)
def _output_that_nobody_watches(monkeypatch):
    """Commands write as into a pipe, whatever width the surroundings tell of."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Tiny models of every kind the commands meet, saved as users save theirs."""
    torch.manual_seed(0)
    count, root = len(PIECES), tmp_path_factory.mktemp("models")
    broken = BertForSequenceClassification(bert_config())
    with torch.no_grad():
        broken.bert.encoder.layer[1].attention.self.value.weight[0, 0] = torch.nan
    models = {
        "classifier": (BertForSequenceClassification(bert_config()), bert_tokenizer()),
        "encoder": (BertModel(bert_config()), bert_tokenizer()),
        "decoder": (
            GPT2LMHeadModel(GPT2Config(vocab_size=count, n_embd=16, n_layer=2, n_head=4, n_positions=32)),
            gpt_tokenizer(),
        ),
        "translator": (
            T5ForConditionalGeneration(
                T5Config(
                    vocab_size=count, d_model=16, num_layers=1, num_heads=2, d_kv=8, d_ff=16, decoder_start_token_id=0
                )
            ),
            bert_tokenizer(),
        ),
        "vision": (ViTModel(ViTConfig(image_size=16, patch_size=4, **SIZES)), None),
        "no attention": (
            MambaForCausalLM(MambaConfig(vocab_size=count, hidden_size=16, num_hidden_layers=1, state_size=4)),
            gpt_tokenizer(),
        ),
        "nan": (broken, bert_tokenizer()),
    }
    for name, (model, tokenizer) in models.items():
        model.save_pretrained(root / name)
        if tokenizer is not None:
            tokenizer.save_pretrained(root / name)
    return root


@pytest.fixture
def text_file(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(
        "= Films =\n\nA warm film, delightful!\nThe plot is thin.\n\nThat film never feels forced.\n", "utf-8"
    )
    return file
