"""Removing a token does what it says, on encoders, decoders and encoder-decoders, whatever stands beside it."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import LayoutLMConfig, LayoutLMForSequenceClassification, LlamaConfig, LlamaForSequenceClassification

from captum_norm import HFForward
from captum_norm.study.metrics.perturbed import intact, perturbed
from captum_norm.study.metrics.removal import REMOVALS, Copies, removal_named
from captum_norm.study.metrics.scored_texts import Scored
from tests.attr.models import tiny
from tests.study.metrics.bag import MASK, PAD, VOCABULARY, BagOfTokens, forward, padded, random_scored, single, texts

BERT = tiny("Bert")


def keep_of(scored: Scored, seed: int = 0) -> Tensor:
    """Some tokens of each example, at random."""
    keep = torch.rand(scored.removable.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    return keep | ~scored.removable


def removed(model, scored: Scored, removal: str, keep: Tensor | None = None) -> Tensor:
    keep = keep_of(scored) if keep is None else keep
    return perturbed(HFForward(model), scored, torch.arange(len(scored)), keep, removal, 64, "log")


def log_p(model, ids: Tensor, target: Tensor, **more: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids, **more).logits.double().log_softmax(-1)[0, target]


def test_each_way_says_what_it_does():
    assert list(REMOVALS) == ["delete", "mask", "pad", "mean_embedding", "gate"]
    assert len({removal.meaning for removal in REMOVALS.values()}) == 5


def test_deleting_is_the_model_on_the_shorter_text():
    scored = random_scored()
    keep = keep_of(scored)
    found = removed(BERT, scored, "delete", keep)
    for row in range(3):
        real = scored.inputs["attention_mask"][row] > 0
        ids = scored.inputs["input_ids"][row, real & keep[row]][None]
        torch.testing.assert_close(found[row], log_p(BERT, ids, scored.target[row]), atol=1e-6, rtol=1e-5)


def test_masked_tokens_are_the_mask_token():
    scored = random_scored()
    keep = keep_of(scored)
    found = removed(BERT, scored, "mask", keep)
    for row in range(3):
        real = scored.inputs["attention_mask"][row] > 0
        ids = torch.where(keep[row], scored.inputs["input_ids"][row], MASK)[real][None]
        torch.testing.assert_close(found[row], log_p(BERT, ids, scored.target[row]), atol=1e-6, rtol=1e-5)


def test_padded_tokens_are_hidden_and_the_others_keep_their_places():
    scored = random_scored()
    keep = keep_of(scored)
    found = removed(BERT, scored, "pad", keep)
    for row in range(3):
        real = scored.inputs["attention_mask"][row] > 0
        stays = (keep[row] & real).nonzero().flatten()[None]
        ids = scored.inputs["input_ids"][row, stays[0]][None]
        expected = log_p(BERT, ids, scored.target[row], position_ids=stays)
        torch.testing.assert_close(found[row], expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("removal", ["gate", "mean_embedding"])
def test_embeddings_are_replaced_before_positions_are_added(removal):
    scored = random_scored()
    keep = keep_of(scored)
    found = removed(BERT, scored, removal, keep)
    table = BERT.bert.embeddings.word_embeddings.weight.detach()
    instead = table.mean(0) if removal == "mean_embedding" else torch.zeros(table.shape[1])
    for row in range(3):
        real = scored.inputs["attention_mask"][row] > 0
        vectors = torch.where(keep[row, :, None], table[scored.inputs["input_ids"][row]], instead)[real][None]
        with torch.no_grad():
            logits = BERT(inputs_embeds=vectors).logits
        expected = logits.double().log_softmax(-1)[0, scored.target[row]]
        torch.testing.assert_close(found[row], expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("removal", [removal for removal in REMOVALS if removal != "mask"])  # these have no [MASK]
@pytest.mark.parametrize("family", ["GPT2", "Llama", "Bart", "T5"])
def test_decoders_and_encoder_decoders_lose_tokens_too(family, removal):
    """With nothing removed nothing changes; and a padded batch is what its examples are by themselves."""
    model = tiny(family)
    scored = random_scored(classes=20)
    everything = torch.ones_like(scored.removable)
    whole = removed(model, scored, removal, everything)
    torch.testing.assert_close(whole, intact(HFForward(model), scored, "log"), atol=1e-5, rtol=1e-5)
    keep = keep_of(scored)
    found = removed(model, scored, removal, keep)
    assert (found - whole).abs().min() > 1e-4
    for row in range(3):
        one, real = single(scored, row), scored.inputs["attention_mask"][row] > 0
        alone = removed(model, one, removal, keep[row : row + 1, real])
        torch.testing.assert_close(found[row : row + 1], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("removal", ["delete", "pad"])
def test_a_text_that_loses_everything_is_one_padding_token(removal):
    model = tiny("Llama")
    ids = torch.tensor([[7, 8, 9]])
    mask, everything = torch.ones_like(ids), torch.ones(1, 3, dtype=torch.bool)
    scored = Scored({"input_ids": ids, "attention_mask": mask}, mask.double(), torch.tensor([4]), everything)
    found = removed(model, scored, removal, ~everything)
    with torch.no_grad():
        padding = model.config.pad_token_id
        first = 2 if padding is None else padding
        expected = model(torch.tensor([[first]])).logits[0, -1].double().log_softmax(-1)[4]
    torch.testing.assert_close(found[0], expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("removal", ["delete", "pad"])
@pytest.mark.parametrize("left", [False, True])
def test_a_text_that_loses_everything_says_the_same_on_whichever_side_its_batch_is_padded(removal, left):
    """Decoders with a head for classes answer where the last id is that is no padding, or else in front."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForSequenceClassification(
            LlamaConfig(
                vocab_size=VOCABULARY,
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=16,
                initializer_range=0.3,
                pad_token_id=PAD,
                num_labels=3,
            )
        ).eval()
        torch.nn.init.normal_(model.model.embed_tokens.weight)  # that of padding is 0 to begin with
    scored = random_scored(left=left)
    real = scored.inputs["attention_mask"] > 0
    scored = replace(scored, removable=real)
    keep = torch.stack([~real[0], scored.inputs["input_ids"][1] > 20, ~real[2]])  # the second keeps some of its tokens
    found = removed(model, scored, removal, keep)
    for row in (0, 2):
        expected = log_p(model, torch.tensor([[PAD]]), scored.target[row])
        torch.testing.assert_close(found[row], expected, atol=1e-6, rtol=1e-5)


def test_what_is_known_of_a_texts_first_token_is_said_of_what_stands_in_for_it():
    class Typed(BagOfTokens):
        def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
            return super().forward((input_ids + token_type_ids) % VOCABULARY, attention_mask)

    scored = random_scored(left=True)
    real = scored.inputs["attention_mask"] > 0
    scored = replace(scored, removable=real, inputs={**scored.inputs, "token_type_ids": 5 * real})
    for removal in ("delete", "pad"):
        found = removed(Typed(), scored, removal, ~real)
        expected = BagOfTokens()(torch.tensor([[PAD + 5]])).log_softmax(-1)[0, scored.target]
        torch.testing.assert_close(found, expected)


def test_texts_that_are_padded_on_the_left_stay_padded_on_the_left():
    model, scored = tiny("Llama"), random_scored(left=True, classes=20)
    keep = keep_of(scored)
    found = removed(model, scored, "delete", keep)
    for row in range(3):
        one, real = single(scored, row), scored.inputs["attention_mask"][row] > 0
        ids = one.inputs["input_ids"][:, keep[row, real]]
        with torch.no_grad():
            expected = model(ids).logits[0, -1].double().log_softmax(-1)[scored.target[row]]
        torch.testing.assert_close(found[row], expected, atol=1e-5, rtol=1e-5)


def test_pixels_are_removed_by_the_gate():
    model = tiny("ViT")
    pixels = torch.randn(2, 3, 12, 12)
    patches = torch.ones(2, 9, dtype=torch.bool)
    scored = Scored({"pixel_values": pixels}, torch.randn(2, 9), torch.tensor([0, 1]), patches)
    keep = patches.clone()
    keep[:, 4] = False
    found = removed(model, scored, "gate", keep)
    assert (found - intact(HFForward(model), scored, "log")).abs().min() > 1e-4
    with pytest.raises(ValueError, match="removal='delete' is for token ids"):
        removed(model, scored, "delete", keep)


@pytest.mark.parametrize("position", [0, "mean", [1, 2, 1]])
def test_a_chosen_position_is_explained_in_every_copy(position):
    model, scored = tiny("GPT2"), random_scored(classes=20)
    through = HFForward(model, position=position)
    keep = keep_of(scored)
    found = perturbed(through, scored, torch.tensor([2, 0, 1]), keep[[2, 0, 1]], "mean_embedding", 2, "log")
    for place, row in enumerate([2, 0, 1]):
        own = position[row] if isinstance(position, list) else position
        one, real = single(scored, row), scored.inputs["attention_mask"][row] > 0
        place_of_one = (one, torch.tensor([0]), keep[row : row + 1, real], "mean_embedding", 64, "log")
        alone = perturbed(HFForward(model, position=own), *place_of_one)
        torch.testing.assert_close(found[place], alone[0], atol=1e-5, rtol=1e-5)


def test_deleting_would_move_a_chosen_position():
    scored = random_scored(classes=20)
    with pytest.raises(ValueError, match=r"removal='delete' moves tokens, so HFForward\(position=2\)"):
        perturbed(HFForward(tiny("GPT2"), position=2), scored, torch.arange(3), keep_of(scored), "delete", 64)


def test_without_a_mask_token_masking_is_refused_with_the_way_out():
    scored = replace(random_scored(), mask_id=None)
    with pytest.raises(ValueError, match=r"no \[MASK\] token is known for BagOfTokens.*tokenizer.mask_token_id"):
        removed(BagOfTokens(), scored, "mask")


def test_a_model_that_takes_no_attention_mask_cannot_hide_tokens():
    class Unmasked(BagOfTokens):
        def forward(self, input_ids: Tensor) -> Tensor:
            return super().forward(input_ids)

    with pytest.raises(ValueError, match="attention_mask, which Unmasked does not take"):
        removed(Unmasked(), random_scored(), "delete")
    assert removed(Unmasked(), random_scored(), "gate").isfinite().all()


def test_a_missing_attention_mask_means_that_all_tokens_are_real():
    ids = padded(texts([5, 5]))["input_ids"]
    scored = random_scored([5, 5])
    without = replace(scored, inputs={"input_ids": ids}, memo={})
    for removal in ("delete", "pad"):
        torch.testing.assert_close(removed(BERT, without, removal), removed(BERT, scored, removal))


def test_unknown_ways_are_refused():
    with pytest.raises(ValueError, match="removal should be one of 'delete', 'mask', 'pad'"):
        removal_named("burn")


def test_copies_that_are_the_same_run_once():
    rows = []

    class Counting(BagOfTokens):
        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            rows.append(len(input_ids))
            return super().forward(input_ids, attention_mask)

    scored = random_scored([4])
    keep = scored.removable.repeat(5, 1)
    found = perturbed(forward(Counting()), scored, torch.zeros(5).long(), keep, "pad", 64, "log")
    assert rows == [1, 1]  # the text as it is, and one copy
    assert len(found) == 5


def test_a_model_that_reads_its_last_place_finds_a_token_there():
    """Whatever is cut out, texts that are padded on the left end where the batch ends."""

    class LastPlace(BagOfTokens):
        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            return self.embedding(input_ids)[:, -1]

    scored = random_scored(left=True)
    last = removed(LastPlace(), scored, "delete", ~scored.removable)
    torch.testing.assert_close(last, intact(forward(LastPlace()), scored, "log"))


def test_the_decoders_own_tokens_stay():
    model, scored = tiny("Bart"), random_scored([6, 6], classes=20)
    decoder = scored.inputs["input_ids"].flip(1)
    more = {**scored.inputs, "decoder_input_ids": decoder, "decoder_attention_mask": torch.ones_like(decoder)}
    keep = keep_of(scored)
    found = removed(model, replace(scored, inputs=more), "delete", keep)
    for row in range(2):
        with torch.no_grad():
            ids = scored.inputs["input_ids"][row, keep[row]][None]
            logits = model(input_ids=ids, decoder_input_ids=decoder[row : row + 1]).logits[0, -1]
        expected = logits.double().log_softmax(-1)[scored.target[row]]
        torch.testing.assert_close(found[row], expected, atol=1e-5, rtol=1e-5)


class Boxed(BagOfTokens):
    """What a token contributes depends on its box and on another input of its own; the others are not looked at."""

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        bbox: Tensor | None = None,
        mine: Tensor | None = None,
        image: Tensor | None = None,
        pairs: Tensor | None = None,
        mc_token_ids: Tensor | None = None,
    ) -> Tensor:
        weights = attention_mask.double()
        for of_tokens in (bbox, mine):
            if of_tokens is not None:
                weights = weights * (1 + of_tokens.reshape(*weights.shape, -1).sum(2))
        return (self.embedding(input_ids) * weights[..., None]).sum(1)


def with_more(scored: Scored, **more: Tensor) -> tuple[HFForward, Scored]:
    forward = HFForward(Boxed(), names=("attention_mask", *more))
    return forward, replace(scored, inputs={**scored.inputs, **more}, memo={}, copies={})


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("shape", [(), (4,), (2, 3)])
def test_what_is_said_of_a_token_moves_with_it_whatever_its_shape(shape, left):
    scored = random_scored(left=left)
    rows, length = scored.removable.shape
    mine = torch.rand(rows, length, *shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    forward, scored = with_more(scored, mine=mine)
    keep = keep_of(scored)
    found = perturbed(forward, scored, torch.arange(rows), keep, "delete", 64, "log")
    for row in range(rows):
        stays = (scored.inputs["attention_mask"][row] > 0) & keep[row]
        ids = scored.inputs["input_ids"][row, stays][None]
        logits = Boxed()(ids, torch.ones_like(ids), mine=mine[row, stays][None])
        torch.testing.assert_close(found[row], logits.log_softmax(-1)[0, scored.target[row]])


@pytest.mark.parametrize("removal", ["delete", "pad"])
def test_boxes_stay_with_their_tokens(removal):
    """LayoutLM's are (batch, token, 4), also for four tokens."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LayoutLMConfig(vocab_size=VOCABULARY, num_labels=3, initializer_range=0.5, **sizes)
        model = LayoutLMForSequenceClassification(config).eval()
    for lengths in ((7, 4, 9), (2, 1, 2)):
        scored = random_scored(lengths)
        boxes = torch.randint(0, 500, (*scored.removable.shape, 2), generator=torch.Generator().manual_seed(3))
        boxes = torch.cat([boxes, boxes + 90], -1)
        scored = replace(scored, inputs={**scored.inputs, "bbox": boxes}, memo={})
        keep = keep_of(scored, seed=1)
        forward = HFForward(model, names=("attention_mask", "bbox"))
        found = perturbed(forward, scored, torch.arange(3), keep, removal, 64, "log")
        for row in range(3):
            stays = (scored.inputs["attention_mask"][row] > 0) & keep[row]
            more = {} if removal == "delete" else {"position_ids": stays.nonzero().T}
            ids, box = scored.inputs["input_ids"][row, stays][None], boxes[row, stays][None]
            expected = log_p(model, ids, scored.target[row], bbox=box, **more)
            torch.testing.assert_close(found[row], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("removal", ["delete", "pad"])
def test_what_stands_in_for_a_text_has_the_box_of_its_first_token(removal):
    scored = random_scored(left=True)
    real = scored.inputs["attention_mask"] > 0
    boxes = torch.rand(*real.shape, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    forward, scored = with_more(replace(scored, removable=real), bbox=boxes)
    found = perturbed(forward, scored, torch.arange(3), ~real, removal, 64, "log")
    for row in range(3):
        first = boxes[row, real[row]][None, :1]
        expected = Boxed()(torch.tensor([[PAD]]), torch.tensor([[1]]), bbox=first)
        torch.testing.assert_close(found[row], expected.log_softmax(-1)[0, scored.target[row]])


def test_pictures_with_as_many_channels_as_the_text_has_tokens_are_not_moved():
    scored = random_scored([1, 1])
    forward, scored = with_more(scored, image=torch.randn(2, 3, 3, 3))
    copies = Copies(
        scored.inputs["input_ids"], {k: v for k, v in scored.inputs.items() if k != "input_ids"}, keep_of(scored),
        torch.arange(2), forward, None, {},
    )  # fmt: skip
    found = removal_named("delete").apply(copies.but(keep=~scored.removable))
    assert found.main.tolist() == [[1, 2], [1, 2]]
    assert torch.equal(found.extras["image"], scored.inputs["image"])


@pytest.mark.parametrize("shape", [(11, 11), (2, 11, 11), (2, 11), (1, 1, 11)])
def test_deleting_is_refused_where_something_may_be_said_of_pairs_of_tokens(shape):
    scored = random_scored()
    forward, scored = with_more(scored, pairs=torch.rand(3, *shape))
    with pytest.raises(ValueError, match=r"but pairs is \(3, .*as long as the text \(11\).*pad the texts to another"):
        perturbed(forward, scored, torch.arange(3), keep_of(scored), "delete", 64)


def test_deleting_is_refused_where_an_input_tells_places_in_the_text():
    forward, scored = with_more(random_scored(), mc_token_ids=torch.tensor([[8], [5], [10]]))
    with pytest.raises(ValueError, match="so mc_token_ids, which tells places in the text, would tell others"):
        perturbed(forward, scored, torch.arange(3), keep_of(scored), "delete", 64)


def test_deleting_is_refused_where_an_input_of_each_token_is_held_fixed():
    scored = random_scored([9])
    forward = HFForward(Boxed(), names=("attention_mask",), bbox=torch.rand(1, 11, 4, dtype=torch.float64))
    keep = keep_of(scored)
    with pytest.raises(ValueError, match=r"HFForward\(bbox=...\) is held fixed, \(1, 11, 4\).*names="):
        perturbed(forward, scored, torch.zeros(1).long(), keep, "delete", 64)
    assert perturbed(forward, scored, torch.zeros(1).long(), keep, "pad", 64).isfinite().all()
