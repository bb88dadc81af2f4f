"""Positions are followed through what libraries write in place of an embedding or a patch convolution."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from einops import rearrange
from torch import nn

from captum_norm import AttentionNorm, AttentionRollout, DecompX, attention_maps
from captum_norm.capture import recording
from captum_norm.forward.one_mapping import by_keywords
from tests.capture.hand_written import MODEL, Attention, join

VOCABULARY, LENGTH = 9, 6


class Model(nn.Module):
    """Something makes vectors of the input, attention follows, a line reads the first row."""

    def __init__(self, embed):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.embed = nn.Parameter(torch.randn(VOCABULARY, MODEL)), embed
        self.patch, self.norm, self.head = nn.Linear(16, MODEL), nn.LayerNorm(16), nn.Linear(MODEL, 3)
        self.attention = Attention(lambda m, x: m.o(join(m.mixed(x))))

    def forward(self, *inputs):
        x = self.embed(self, *inputs)
        return self.head((x + self.attention(x))[:, 0])


LOOKED_UP = {
    "index": lambda m, ids: m.table[ids],
    "index and slice": lambda m, ids: m.table[ids, :],
    "index_select": lambda m, ids: m.table.index_select(0, ids.flatten()).view(*ids.shape, -1),
    "one-hot product": lambda m, ids: F.one_hot(ids, VOCABULARY).float() @ m.table,
}


@pytest.mark.parametrize("embed", LOOKED_UP.values(), ids=LOOKED_UP)
def test_rows_of_a_table_are_the_ids_that_chose_them(embed):
    ids = torch.randint(0, VOCABULARY, (2, LENGTH))
    plain, model = Model(lambda m, ids: F.embedding(ids, m.table)).eval(), Model(embed).eval()
    for method, target in ((AttentionNorm, None), (AttentionRollout, None), (DecompX, 1)):
        expected = method(plain).attribute(ids, target=target)
        assert torch.allclose(method(model).attribute(ids, target=target), expected, atol=1e-6), method.__name__


CUT = {
    "rearranged": lambda m, x: m.patch(m.norm(rearrange(x, "b c (h i) (w j) -> b (h w) (i j c)", i=4, j=4))),
    "unfolded": lambda m, x: m.patch(F.unfold(x, 4, stride=4).transpose(1, 2)),
    "strided view": lambda m, x: m.patch(x[:, 0].unfold(1, 4, 4).unfold(2, 4, 4).flatten(1, 2).flatten(2)),
}


@pytest.mark.parametrize("embed", CUT.values(), ids=CUT)
def test_patches_that_are_cut_without_a_convolution_score_their_own_pixels(embed):
    model, picture = Model(embed).eval(), torch.randn(2, 1, 8, 12)
    scores = AttentionNorm(model).attribute(picture)
    maps = attention_maps(model, picture).summed_norms[0][:, 0]
    cells = scores.view(2, 2, 4, 3, 4).sum((2, 4)).flatten(1)
    assert torch.allclose(cells, maps, atol=1e-5)
    assert torch.equal(scores[0, 0, :4, :4], scores[0, 0, 0, 0].expand(4, 4))


def test_windows_that_overlap_are_no_patches():
    picture = torch.randn(1, 1, 8, 8)
    model = Model(lambda m, x: m.patch(F.unfold(x, 4, stride=2).transpose(1, 2))).eval()
    with recording(sources=(picture,)) as records:
        model(picture)
    assert records[0].keys is None


def pictured(write):
    def embed(m, ids, picture):
        patches = rearrange(picture, "b c (h i) (w j) -> b (h w) (i j c)", i=4, j=4)
        return write(F.embedding(ids, m.table), (ids == 8)[..., None], m.patch(patches))

    return Model(embed).eval()


def put(x, mask, vectors):
    x = x.clone()
    x[mask[..., 0]] = vectors.flatten(0, 1)
    return x


@pytest.mark.parametrize(
    "write", [lambda x, mask, v: x.masked_scatter(mask.expand_as(x), v), put], ids=["masked_scatter", "boolean index"]
)
def test_rows_that_hold_a_picture_count_as_the_ids_in_whose_place_they_stand(write):
    model, ids, picture = pictured(write), torch.tensor([[1, 8, 8, 4, 2]]), torch.randn(1, 1, 4, 8)
    scores = AttentionNorm(lambda tokens: model(tokens, picture)).attribute(ids)
    maps = attention_maps(lambda tokens: model(tokens, picture), ids)
    assert torch.allclose(scores, maps.summed_norms[0][:, 0], atol=1e-6)
    AttentionRollout(lambda tokens: model(tokens, picture)).attribute(ids)  # nothing mixes positions beside attention


def test_rows_that_are_replaced_by_what_the_text_itself_was_made_into_mix_it():
    def embed(m, ids):
        x = F.embedding(ids, m.table)
        return x.masked_scatter((ids == 8)[..., None].expand_as(x), x.flip(1) * 2)

    with pytest.raises(ValueError, match="positions are mixed by masked_scatter"):
        AttentionRollout(Model(embed).eval()).attribute(torch.tensor([[1, 8, 8, 4, 2]]))


def test_attention_over_something_else_has_no_part_in_the_scores_of_a_text():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.text, self.ear = Model(lambda m, ids: F.embedding(ids, m.table)), nn.Conv1d(1, MODEL, 3, stride=2)
            self.look = Attention(lambda m, x: m.o(join(m.mixed(x))))

        def forward(self, ids, sound):
            seen = self.look(self.ear(sound).mT)
            return self.text(ids) + self.text.head(seen.mean(1))

    model, ids, sound = Both().eval(), torch.randint(0, VOCABULARY, (1, 5)), torch.randn(1, 1, 7)
    method = AttentionRollout(lambda tokens: model(tokens, sound))
    assert torch.allclose(method.attribute(ids), AttentionRollout(model.text).attribute(ids))
    assert [call.name for call in method.report.unused] == ["look"]


class Spectrogram(nn.Module):
    """Patches of (time, frequency), told apart frequency by frequency."""

    def __init__(self, width, stride):
        super().__init__()
        self.cut, self.text = nn.Conv2d(1, MODEL, width, stride), Model(lambda m, patches: patches)

    def patches(self, sound):
        return self.cut(sound[:, None].mT).flatten(2).mT

    def forward(self, sound):
        return self.text(self.patches(sound))


def test_patches_of_a_spectrogram_score_their_own_times_and_frequencies():
    model, sound = Spectrogram(4, 4).eval(), torch.randn(2, 16, 8)
    maps = attention_maps(model, sound).summed_norms[0][:, 0].view(2, 2, 4)  # (frequency, time)
    scores = AttentionNorm(model).attribute(sound)
    assert torch.allclose(scores.view(2, 4, 4, 2, 4).sum((2, 4)).mT, maps, atol=1e-6)
    shares, frames = DecompX(model).attribute(sound, target=1), model.patches(sound).detach()
    expected = DecompX(model.text).attribute(frames, target=1).sum(-1).view(2, 2, 4)
    assert torch.allclose(shares.view(2, 4, 4, 2, 4).sum((2, 4)).mT, expected, atol=1e-6)


def test_frames_that_overlap_in_a_turned_spectrogram_are_no_cells_of_it():
    for method, target in ((AttentionNorm, None), (DecompX, 1)):
        with pytest.raises(ValueError, match=r"is read by no attention call.*explain a function of the frames"):
            method(Spectrogram(3, 2).eval()).attribute(torch.randn(1, 17, 9), target=target)


def test_blocks_of_a_film_score_their_own_frames_and_pixels():
    class Film(nn.Module):
        def __init__(self):
            super().__init__()
            self.cut, self.text = nn.Conv3d(3, MODEL, (2, 4, 4), (2, 4, 4)), Model(lambda m, blocks: blocks)

        def forward(self, film):  # (batch, frame, channel, height, width)
            return self.text(self.cut(film.transpose(1, 2)).flatten(2).mT)

    model, film = Film().eval(), torch.randn(1, 4, 3, 8, 8)
    scores = AttentionNorm(model).attribute(film)
    maps = attention_maps(model, film).summed_norms[0][:, 0].view(1, 2, 2, 2)
    assert torch.allclose(scores.view(1, 2, 2, 3, 2, 4, 2, 4).sum((2, 3, 5, 7)), maps, atol=1e-6)


def test_a_model_of_one_mapping_is_explained_as_one_of_keywords():
    class Sentences(nn.Module):
        def __init__(self):
            super().__init__()
            self.text = Model(lambda m, ids: F.embedding(ids, m.table))

        def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            found = self.text(features["input_ids"]) * features["attention_mask"][:, :1]
            return {"token_embeddings": found[:, None], "sentence_embedding": found}

    model, ids = Sentences().eval(), torch.randint(0, VOCABULARY, (2, 4))
    assert by_keywords(model.text) is model.text
    for method, target in ((AttentionNorm, None), (DecompX, 2)):
        expected = method(model.text).attribute(ids, target=target)
        assert torch.allclose(method(model).attribute(ids, target=target), expected)
    assert len(attention_maps(model, {"input_ids": ids}).calls) == 1


def test_sound_that_is_read_in_frames_is_told_how_the_frames_are_scored():
    class Listener(nn.Module):
        def __init__(self):
            super().__init__()
            self.ear, self.text = nn.Conv1d(1, MODEL, 3, stride=2), Model(lambda m, frames: frames)

        def forward(self, sound):
            return self.text(self.ear(sound).mT)

    model, sound = Listener().eval(), torch.randn(1, 1, 11)
    with pytest.raises(ValueError, match=r"convolutions that overlap.*explain a function of the frames"):
        AttentionNorm(model).attribute(sound)
    scores = AttentionNorm(model.text).attribute(model.ear(sound).mT.detach())
    maps = attention_maps(model, sound).summed_norms[0]
    assert torch.allclose(scores.sum(-1), maps[:, 0], atol=1e-6)


def test_a_picture_in_a_mapping_that_the_function_encloses_was_there_before():
    model, ids = pictured(lambda x, mask, v: x.masked_scatter(mask.expand_as(x), v)), torch.tensor([[1, 8, 8, 4, 2]])
    picture = torch.randn(1, 1, 4, 8)
    fixed = {"picture": picture}

    def beside_it(tokens):
        if int((tokens == 8).sum()) != 2:  # other texts do not fit the picture, so no other run can tell a constant
            raise ValueError
        return model(tokens, *fixed.values())

    expected = AttentionNorm(lambda tokens: model(tokens, picture)).attribute(ids)
    assert torch.allclose(AttentionNorm(beside_it).attribute(ids), expected)
