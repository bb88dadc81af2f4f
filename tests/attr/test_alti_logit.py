"""ALTILogit: its definition on decoders of ten makes, completeness, contrast, its authors' figures, what it refuses."""

import json
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from captum_norm import ALTILogit, DecompX, HFForward, LLMAttentionAttribution
from captum_norm.capture import recording
from captum_norm.functional import alti
from captum_norm.linear import NotFrozenError
from captum_norm.measures import alti_contributions
from tests.attr.models import ids, tiny
from tests.attr.test_llm import sentence_piece

# A row of ALTI that no input brings nearer is zero, and says so.
pytestmark = pytest.mark.filterwarnings("ignore:alti. no input brings the output nearer")

close = torch.testing.assert_close

SMALL: dict[str, Any] = {
    "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 24,
    "max_position_embeddings": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GROUPED = {**SMALL, "num_key_value_heads": 2, "head_dim": 4}
ENDS = {"bos_token_id": 1, "eos_token_id": 2}
DECODERS: dict[str, tuple[str, dict[str, Any], str]] = {
    "GPT-2": ("GPT2", {"n_embd": 16, "n_layer": 3, "n_head": 4, "vocab_size": 40, **ENDS}, "transformer.ln_f"),
    "OPT": ("OPT", {**SMALL, "ffn_dim": 24, "word_embed_proj_dim": 16}, "model.decoder.final_layer_norm"),
    "BLOOM": ("Bloom", {"vocab_size": 40, "hidden_size": 16, "n_layer": 3, "n_head": 4}, "transformer.ln_f"),
    "GPT-NeoX": ("GPTNeoX", {**SMALL, "rotary_pct": 0.5}, "gpt_neox.final_layer_norm"),
    "Llama": ("Llama", GROUPED, "model.norm"),
    "Qwen2": ("Qwen2", GROUPED, "model.norm"),
    "Qwen3": ("Qwen3", GROUPED, "model.norm"),
    "Gemma 2": ("Gemma2", {**GROUPED, "query_pre_attn_scalar": 4, "final_logit_softcapping": 2.0}, "model.norm"),
    "Gemma 3": ("Gemma3", {**GROUPED, "query_pre_attn_scalar": 4}, "model.norm"),
    "Mixtral": ("Mixtral", {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}, "model.norm"),
}

def decoder(name):
    kind, config, norm = DECODERS[name]
    made = getattr(transformers, f"{kind}TextConfig" if kind == "Gemma3" else f"{kind}Config")(**config)
    made._experts_implementation = "eager"  # grouped products of experts refuse float64
    made._attn_implementation = "eager" if kind.startswith(("Gemma", "Bloom")) else "sdpa"
    torch.manual_seed(0)
    model = getattr(transformers, "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM")(made).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.double(), norm


def slow_parts(model, norm, tokens, token):
    """What each key adds to the last row's logit of a token, layer by layer, through the model's own final norm."""
    final = model.get_submodule(norm)
    seen: list[torch.Tensor] = []
    handle = final.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad(), recording(blocks=True, sources=[tokens]) as records:
        logit = model(tokens).logits[0, -1, token].double()
    handle.remove()
    x, weight = seen[0][0, -1].double(), final.weight.double()
    weight = 1 + weight if "Gemma" in type(final).__name__ else weight
    unembedding = model.get_output_embeddings().weight[token].double()
    eps = next(getattr(final, name) for name in ("eps", "variance_epsilon") if hasattr(final, name))
    centred = isinstance(final, torch.nn.LayerNorm)

    def normed(parts):
        parts, centre = (parts - parts.mean(-1, keepdim=True), x.mean()) if centred else (parts, 0)
        return weight * parts / ((x - centre).square().mean() + eps).sqrt() @ unembedding

    cap = getattr(model.config, "final_logit_softcapping", None)
    scale = logit / (cap * torch.atanh(logit / cap)) if cap else 1.0
    for record in records:
        parts = torch.einsum(
            "hk,hke,hed->kd", record.weights[0, :, -1].double(), record.values[0].double(), record.W_O.double()
        )
        inner = record.block.inner
        if inner is not None:
            parts = inner.fold(parts) / (1 if inner.deviation is None else inner.deviation[0, -1])
        yield scale * normed(parts), alti_contributions(record)[0].double()


@pytest.fixture(scope="module", params=DECODERS)
def built(request):
    return request.param, *decoder(request.param)


def test_scores_are_their_definition_and_add_up_to_the_logit(built):
    """Ten makes: parts by hand, the product of ALTI's maps of the layers below, and all shares of the report."""
    _, model, norm = built
    tokens = ids(1, 7) % 40
    layers = list(slow_parts(model, norm, tokens, 5))
    near = {"rtol": 1e-4, "atol": 1e-5}  # most of these norms compute in float32
    parts, rollout = [], torch.eye(7, dtype=torch.float64)
    for of_keys, mixing in layers:
        parts.append((of_keys, of_keys @ rollout))
        rollout = mixing @ rollout
    logit = model(tokens).logits[0, -1, 5].detach()
    for number, mixing in enumerate((False, True)):
        method = ALTILogit(model, mixing=mixing)
        scores, delta = method.attribute(tokens, target=5, return_convergence_delta=True)
        close(scores[0].double(), sum(part[number] for part in parts).detach(), **near)
        close(scores.sum() + delta[0], logit, rtol=0, atol=1e-9)
        report = method.report
        total = report.attention.sum((0, 2)) + report.biases.sum(0) + report.feed_forward.sum(0)
        total = total + report.embedding + report.final_bias
        close(total[0], logit.double(), rtol=0, atol=1e-9)
        close(report.tracked.sum(2), report.attention.sum(2), rtol=1e-5, atol=1e-6)  # rows of ALTI sum to 1
        if not hasattr(model.get_submodule(norm), "bias"):
            assert abs(float(report.final_bias)) < 1e-5


def test_a_foil_is_subtracted_for_all_or_for_each():
    model, tokens = tiny("GPT2").double(), ids(2, 6)
    method = ALTILogit(model)
    each = [method.attribute(tokens, target=token) for token in (3, 8)]
    close(method.attribute(tokens, target=(3, 8)), each[0] - each[1])
    close(method.attribute(tokens, target=[(3, 8), (8, 3)])[1], each[1][1] - each[0][1])
    close(method.attribute(tokens, target=[(3, 8), 8])[1], each[1][1])
    close(method.attribute(tokens, target=torch.tensor([3, 8])), torch.stack([each[0][0], each[1][1]]))
    contrast, delta = DecompX(model).attribute(tokens, target=(-1, 3, 8), return_convergence_delta=True)
    logits = model(tokens).logits[:, -1].detach()
    close(contrast.sum(1) + delta, logits[:, 3] - logits[:, 8])
    last = HFForward(model)
    one_by_one = [DecompX(last).attribute(tokens, target=token) for token in (3, 8)]
    close(DecompX(last).attribute(tokens, target=(3, 8)), one_by_one[0] - one_by_one[1])
    swapped = DecompX(last).attribute(tokens, target=[(3, 8), (8, 3)])
    close(swapped[1], one_by_one[1][1] - one_by_one[0][1])


class WithRoom(torch.nn.Module):
    """A decoder over a static cache that has room for more than is given."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens):
        cache = transformers.StaticCache(config=self.model.config, max_cache_len=tokens.shape[1] + 3)
        return self.model(tokens, past_key_values=cache).logits


@pytest.mark.parametrize("mixing", [False, True])
def test_room_in_a_static_cache_changes_nothing(mixing):
    model, tokens = decoder("Llama")[0], ids(2, 6) % 40
    one, other = ALTILogit(model, mixing=mixing), ALTILogit(WithRoom(model), mixing=mixing)
    expected = one.attribute(tokens, target=5, return_convergence_delta=True)
    close(other.attribute(tokens, target=5, return_convergence_delta=True), expected)
    close(other.report.tracked.sum(2), one.report.tracked.sum(2))


class Remembering(torch.nn.Module):
    """A decoder with a learned key and value in front of each layer's own."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm, self.head = torch.nn.Embedding(40, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 40)
        self.layers = torch.nn.ModuleList(
            torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(4)) for _ in range(2)
        )
        self.memory = torch.nn.Parameter(torch.empty(2, 2, 1, 8))
        torch.manual_seed(0)
        for parameter in self.parameters():
            torch.nn.init.normal_(parameter, std=0.6)

    def forward(self, tokens):
        x, length = self.embed(tokens), tokens.shape[1]
        seen = torch.ones(length, length + 1, dtype=torch.bool).tril(1)
        for (q, k, v, o), memory in zip(self.layers, self.memory, strict=True):
            y = torch.nn.functional.layer_norm(x, (8,))
            keys, values = (
                torch.cat([learned.expand(len(x), -1, -1), made(y)], 1)
                for learned, made in zip(memory, (k, v), strict=True)
            )
            scores = (q(y) @ keys.mT / 8**0.5).masked_fill(~seen, -torch.inf)
            x = x + o(scores.softmax(-1) @ values)
        return self.head(self.norm(x))


def test_what_is_added_by_way_of_a_learned_key_is_tracked_no_further():
    model, tokens = Remembering().double().eval(), ids(1, 5) % 40
    with torch.no_grad(), recording(blocks=True, sources=[tokens]) as records:
        model(tokens)
    method, mixing = ALTILogit(model), alti_contributions(next(iter(records)))[0]
    scores = method.attribute(tokens, target=5)
    below, above = method.report.attention[:, 0]
    close(scores[0], above[1:] @ mixing[:, 1:] + below[1:])
    at_memory = above[0] + above[1:] @ mixing[:, 0]
    close(method.report.tracked[:, 0, 0], torch.stack([below[0], at_memory]))


@pytest.mark.parametrize(("family", "side"), [("GPT2", "right"), ("Llama", "right"), ("Llama", "left")])
def test_a_padded_batch_equals_one_by_one(family, side):
    model, tokens = tiny(family), ids(2, 7)
    mask, alone = torch.tensor([[1] * 7, [1] * 5 + [0] * 2]), slice(0, 5)
    if side == "left":
        mask, alone = mask.flip(1), slice(2, 7)
    forward = HFForward(model)
    given = forward.inputs({"input_ids": tokens, "attention_mask": mask})
    found = ALTILogit(forward).attribute(**given, target=4)
    close(found[0], ALTILogit(model).attribute(tokens[:1], target=4)[0], rtol=1e-4, atol=1e-5)
    close(found[1, alone], ALTILogit(model).attribute(tokens[1:, alone], target=4)[0], rtol=1e-4, atol=1e-5)
    assert (found[1][mask[1] == 0] == 0).all()


def test_it_stands_where_other_methods_stand():
    """Eager or sdpa, gate or ids, any row, half precision, under no_grad, several answers of one reading."""
    tokens, model = ids(2, 6), tiny("GPT2")
    found = ALTILogit(model).attribute(tokens, 4)
    close(found, ALTILogit(tiny("GPT2", "sdpa")).attribute(tokens, 4, position=5), rtol=1e-4, atol=1e-5)
    gate = HFForward(model, "gate", position=3)
    gated = ALTILogit(gate).attribute(torch.ones(2, 6), 4, tokens)
    assert (gated[:, 4:] == 0).all()
    with torch.inference_mode():
        each = ALTILogit(model).attribute_each(ids(2, 6), [4, (4, 7)], [3, 5])
    close(each[0], gated)
    close(each[1], ALTILogit(model).attribute(tokens, (4, 7)))
    half = ALTILogit(model.bfloat16()).attribute((tokens,), 4)
    assert (type(half), half[0].dtype) == (tuple, torch.float32)
    close(half[0], found, rtol=0.3, atol=0.3 * float(found.abs().max()))


class Capped(torch.nn.Module):
    """A decoder whose logits are written over behind it."""

    def __init__(self):
        super().__init__()
        self.model, self.runs = tiny("GPT2").double(), 0

    def forward(self, tokens):
        self.runs += 1
        return self.model(tokens).logits.clone().mul_(2.0) if self.training else 2.0 * self.model(tokens).logits


def test_a_logit_is_read_off_without_another_run_but_where_tensors_are_written_over():
    model, tokens, found = Capped().eval(), ids(2, 6), []
    for runs in (1, 2):
        model.runs = 0
        scores, delta = ALTILogit(model).attribute(tokens, (3, 4), return_convergence_delta=True)
        assert model.runs == runs
        logits = model(tokens)[:, -1]
        close(scores.sum(1) + delta, logits[:, 3] - logits[:, 4])
        found.append(scores)
        model.training = True  # its own flag alone
    close(*found)


def test_the_map_of_the_top_layer_is_not_measured(monkeypatch):
    seen = []

    def measure(record):
        seen.append(record.call.name)
        return alti_contributions(record)

    monkeypatch.setattr("captum_norm.attr.alti_logit.alti_contributions", measure)
    ALTILogit(tiny("GPT2", "sdpa")).attribute_each(ids(1, 6), [3, 4], [5, 4])
    assert seen == ["transformer.h.0.attn"]


def test_a_language_model_is_explained_token_by_token():
    model = tiny("GPT2")
    method = LLMAttentionAttribution(ALTILogit(model), sentence_piece())
    result = method.attribute(list(range(5, 10)), target=[11, 12])
    tokens = torch.tensor([[5, 6, 7, 8, 9, 11]])
    close(result.token_attr[1], ALTILogit(model).attribute(tokens, 12)[0, :5])
    close(result.token_attr[0], ALTILogit(model).attribute(tokens[:, :5], 11)[0])


BAD = {
    "no target": ({}, ValueError, r"give target=, its id, or \(token, foil\)"),
    "outside the vocabulary": ({"target": 60}, ValueError, "token 60 is not in the vocabulary of 60"),
    "a foil outside the vocabulary": ({"target": (3, 99)}, ValueError, "token 99 is not in the vocabulary"),
    "negative": ({"target": -1}, ValueError, "token -1 is not in the vocabulary"),
    "a word": ({"target": "film"}, TypeError, r"a token's id or a pair \(token, foil\).* got 'film'"),
    "three": ({"target": (1, 2, 3)}, TypeError, "a pair"),
    "too few": ({"target": [1, 2, 3]}, TypeError, "each of 2 in a list"),
    "no row": ({"target": 3, "position": 9}, ValueError, "position 9 is out of range"),
}


class Captioner(torch.nn.Module):
    """Six patches of a picture in front of a text; logits of the last row, of the text's rows, or of all."""

    def __init__(self, gives):
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.patches = torch.nn.Embedding(12, 8), torch.nn.Conv2d(3, 8, 2, 2)
        self.layers = torch.nn.ModuleList(
            torch.nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=True) for _ in range(2)
        )
        self.norm, self.unembed, self.gives = torch.nn.LayerNorm(8), torch.nn.Linear(8, 12), gives

    def embed(self, tokens, pixels):
        return torch.cat([self.patches(pixels).flatten(2).transpose(1, 2), self.tokens(tokens)], 1)

    def stream(self, x, padding=None):
        ahead = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        for layer in self.layers:
            x = layer(x, ahead, padding)
        return self.unembed(self.norm(x))

    def forward(self, tokens, pixels, padding=None):
        logits = self.stream(self.embed(tokens, pixels), padding)
        return {"last": logits[:, -1], "text": logits[:, 6:], "all": logits}[self.gives]


@pytest.mark.parametrize("gives", ["last", "text", "all"])
@pytest.mark.parametrize("mixing", [True, False])
def test_a_text_behind_a_picture_is_scored_by_its_own_positions(gives, mixing):
    model = Captioner(gives).double().eval()
    tokens, pixels = ids(2, 5) % 12, torch.randn(2, 3, 4, 6, dtype=torch.float64)
    whole = ALTILogit(model.stream, mixing=mixing)  # rows of picture and text are positions alike
    method = ALTILogit(model, mixing=mixing)
    last = (-1, 4, None)
    for position in last if gives == "last" else (*last, 0, 2, [1, 3]):
        rows = 10 if position in last else [p + 6 for p in (position if isinstance(position, list) else [position] * 2)]
        vectors = model.embed(tokens, pixels).detach()
        expected, delta = whole.attribute(vectors, target=5, position=rows, return_convergence_delta=True)
        expected = expected.sum(2)
        found, left = method.attribute(tokens, 5, (pixels,), position=position, return_convergence_delta=True)
        close(found, expected[:, 6:])
        close(left, delta + expected[:, :6].sum(1))
    if gives == "last":
        with pytest.raises(ValueError, match=r"are read off rows \[4\], and row 2 was to be explained"):
            method.attribute(tokens, 5, (pixels,), position=2)
    else:
        each = method.attribute_each(tokens, [5, 5], [2, 4], (pixels,))
        close(each[0], method.attribute(tokens, 5, (pixels,), position=2))


def test_a_padded_text_behind_a_picture_equals_the_text_alone():
    model = Captioner("text").double().eval()
    tokens, pixels = ids(2, 5) % 12, torch.randn(2, 3, 4, 6, dtype=torch.float64)
    padding = torch.zeros(2, 11, dtype=torch.bool)
    padding[1, 9:] = True
    found = ALTILogit(model).attribute(tokens, 5, (pixels, padding))
    close(found[:1], ALTILogit(model).attribute(tokens[:1], 5, (pixels[:1],)))
    close(found[1:, :3], ALTILogit(model).attribute(tokens[1:, :3], 5, (pixels[1:],)))
    assert not found[1, 3:].any()


class LastAlone(torch.nn.Module):
    """A decoder whose last attention call asks for the last position alone."""

    def __init__(self, layers):
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.unembed = torch.nn.Embedding(12, 8), torch.nn.Linear(8, 12)
        self.attentions = torch.nn.ModuleList(
            torch.nn.MultiheadAttention(8, 2, batch_first=True) for _ in range(layers)
        )

    def forward(self, tokens, alone=True):
        x = self.tokens(tokens)
        ahead = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        for attention in self.attentions[:-1]:
            x = x + attention(x, x, x, attn_mask=ahead, need_weights=False)[0]
        asks, hidden = (x[:, -1:], None) if alone else (x, ahead)
        x = asks + self.attentions[-1](asks, x, x, attn_mask=hidden, need_weights=False)[0]
        return self.unembed(x[:, -1])


def test_a_last_row_that_is_asked_for_alone_is_explained_where_there_is_no_other():
    tokens, one, two = ids(2, 5) % 12, LastAlone(1).double().eval(), LastAlone(2).double().eval()
    whole = ALTILogit(lambda tokens: one(tokens, alone=False)).attribute(tokens, 5)
    close(ALTILogit(one).attribute(tokens, 5), whole)
    with pytest.raises(ValueError, match=r"asks for positions \[4\] of the input alone, and position= counts all"):
        ALTILogit(one).attribute(tokens, 5, position=0)
    with pytest.raises(ValueError, match=r"asks for 5 positions and .* for 1, .* ALTI follows the row"):
        ALTILogit(two).attribute(tokens, 5)


def test_a_picture_in_front_of_a_text_is_scored_too():
    model = Captioner("last").double().eval()
    tokens, pixels = ids(2, 5) % 12, torch.randn(2, 3, 4, 6, dtype=torch.float64)
    expected = ALTILogit(model.stream).attribute(model.embed(tokens, pixels).detach(), target=5)
    found = ALTILogit(lambda picture, text: model(text, picture)).attribute(pixels, 5, (tokens,))
    close(found.sum((1, 2, 3)), expected[:, :6].sum((1, 2)))


@pytest.mark.parametrize("name", BAD)
def test_targets_that_are_none_are_answered_by_what_was_found(name):
    arguments, error, message = BAD[name]
    with pytest.raises(error, match=message):
        ALTILogit(tiny("GPT2")).attribute(ids(2, 6), **arguments)


def test_models_whose_logits_are_no_sum_of_parts_are_refused():
    with pytest.raises(ValueError, match=r"ALTILogit explains decoders, .*looks ahead"):
        ALTILogit(tiny("Bert")).attribute(ids(1, 6), 1)
    with pytest.raises(ValueError, match="which read one sequence"):
        ALTILogit(tiny("Bart")).attribute((ids(1, 6), ids(1, 4)), 1)
    config = transformers.OPTConfig(**SMALL, ffn_dim=24, word_embed_proj_dim=16, do_layer_norm_before=False)
    with pytest.raises(ValueError, match=r"a norm stands behind the residual .*post-norm"):
        ALTILogit(transformers.OPTForCausalLM(config).eval()).attribute(ids(1, 6) % 40, 1)
    model = tiny("GPT2")
    with pytest.raises(ValueError, match=r"read off rows \[0, 1, 2, 3, 4, 5\], and row 5 was to be explained"):
        ALTILogit(lambda tokens: model(tokens).logits.mean(1)).attribute(ids(1, 6), 1)
    with pytest.raises(ValueError, match="explains logits"):
        ALTILogit(lambda tokens: model(tokens).logits[0, 0]).attribute(ids(1, 6), 1)


# ------------------------------------------------------------------------------------------- its authors' figures


@pytest.mark.parametrize("kind", ["gpt2", "opt", "bloom"])
def test_scores_are_those_of_the_papers_code(oracles, kind, monkeypatch):
    """To 1e-10, but for 1e-6 that their distance adds to each coordinate: with it, ALTI-Logit is theirs, too."""
    file = np.load(oracles / f"altilogit_{kind}.npz")
    config = json.loads(str(file["config"]))
    config = transformers.AutoConfig.for_model(config.pop("model_type"), **config)
    attention = "eager" if kind == "bloom" else "sdpa"
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention).double().eval()
    names = [name for name in file.files if name.startswith("weights/")]
    weights = {name.removeprefix("weights/"): torch.from_numpy(file[name]).double() for name in names}
    model.load_state_dict(weights, strict=False)
    exact = {"rtol": 0, "atol": 1e-10}

    def as_published(record):
        block = record.block
        return alti(record.weights, record.values, record.W_O, block.residual, output=block.output, as_published=True)

    for text in range(2):
        tokens, pair = torch.from_numpy(file[f"input_ids_{text}"])[None], file[f"target_foil_{text}"].tolist()
        for number, token in enumerate(pair):
            method = ALTILogit(model, mixing=False)
            method.attribute(tokens, target=token)
            close(method.report.tracked[:, 0], torch.from_numpy(file[f"logit_{text}"][number]), **exact)
            close(method.report.feed_forward[:, 0], torch.from_numpy(file[f"mlp_logit_{text}"][:, number]), **exact)
            close(method.report.biases[:, 0], torch.from_numpy(file[f"b_O_logit_{text}"][:, number]), **exact)
        ours = ALTILogit(model).attribute(tokens, target=tuple(pair))[0]
        theirs = torch.from_numpy(file[f"alti_logit_contrastive_{text}"])
        assert 1e-9 < float((ours - theirs).abs().max()) < 1e-5
        with monkeypatch.context() as patch:
            patch.setattr("captum_norm.attr.alti_logit.alti_contributions", as_published)
            close(ALTILogit(model).attribute(tokens, target=tuple(pair))[0], theirs, **exact)


ORDER = torch.tensor([2, 0, 1, 5, 4, 3])


class Permuting(torch.nn.Module):
    """A causal layer whose attention may take its rows in another order."""

    def __init__(self, permutes):
        super().__init__()
        self.permutes, self.norm = permutes, torch.nn.LayerNorm(8)
        self.q, self.k, self.v, self.o = (torch.nn.Linear(8, 8) for _ in range(4))

    def forward(self, x):
        order = ORDER if self.permutes else torch.arange(6)
        h, seen = self.norm(x)[:, order], torch.ones(6, 6).tril().bool()[order][:, order]
        scores = (self.q(h) @ self.k(h).mT).masked_fill(~seen, -torch.inf)
        return x + self.o(scores.softmax(-1) @ self.v(h))[:, order.argsort()]


class Permuted(torch.nn.Module):
    def __init__(self, permutes, drifts=False):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head, self.drift = torch.nn.Embedding(9, 8), torch.nn.Linear(8, 9), 0.0
        self.layers, self.drifts = torch.nn.Sequential(Permuting(permutes), Permuting(permutes)), drifts

    def forward(self, tokens):
        self.drift += self.drifts
        return self.head(self.layers(self.embed(tokens) + self.drift).relu_())


@pytest.mark.parametrize("permutes", [False, True])
def test_attention_that_takes_its_rows_in_another_order_is_told_from_a_model_that_does_not_repeat_itself(permutes):
    tokens = torch.tensor([[1, 2, 3, 4, 5, 6]])
    with pytest.raises(NotFrozenError, match=r"not seen again as .* computes something else each time it runs"):
        ALTILogit(Permuted(permutes, drifts=True).double()).attribute(tokens, target=3)
    model, plain = Permuted(permutes).double(), Permuted(False).double()
    if not permutes:
        assert ALTILogit(model).attribute(tokens, target=3).shape == (1, 6)
        return
    with pytest.raises(NotFrozenError, match=r"row \[3\] there is row \[5\] of the stream.* DecompX answers"):
        ALTILogit(model).attribute(tokens, target=3)
    close(DecompX(model).attribute(tokens, target=(5, 3)), DecompX(plain).attribute(tokens, target=(5, 3)))
