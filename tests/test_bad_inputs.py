"""What cannot be done is refused in words of ours: what was found, and the way out; nothing foreign, nothing silent."""

import copy
import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

import captum_norm
from captum_norm import (
    ALTILogit,
    AttentionMaps,
    AttentionNorm,
    AttentionRelevance,
    AttentionRollout,
    DecompX,
    HFForward,
    LayerAttentionNorm,
    LLMAttentionAttribution,
    SpanTrace,
    ValueZeroing,
    attention_layers,
    attention_maps,
    explain,
)
from captum_norm.alignment import (
    CrossAttentionAligner,
    GoldLinks,
    alignment_error_rate,
    alignment_score,
    error_rate_difference,
)
from captum_norm.comparison import compare
from captum_norm.maps import checked_calls
from captum_norm.methods import Attributor, known_methods, run_method
from captum_norm.tokens import words_of
from captum_norm.visualization import plot, token_map
from tests.cli.conftest import folders  # noqa: F401  (a fixture)
from tests.cli.models import PIECES, TEXT, bert_config, bert_tokenizer, gpt_tokenizer
from tests.cli.running import answer

NOTHING_SHOWN = "is no attention call of this model"


@pytest.fixture(scope="module")
def made():
    """A classifier, a decoder, their tokenizers, an encoding, and maps."""
    torch.manual_seed(0)
    model = BertForSequenceClassification(bert_config()).eval()
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32}
    encoding = bert_tokenizer()(TEXT, return_tensors="pt")
    return SimpleNamespace(
        model=model,
        decoder=GPT2LMHeadModel(GPT2Config(vocab_size=len(PIECES), **sizes)).eval(),
        empty=copy.deepcopy(model).to("meta"),
        tokenizer=bert_tokenizer(),
        decoder_tokenizer=gpt_tokenizer(),
        encoding=encoding,
        ids=encoding["input_ids"],
        maps=attention_maps(model, encoding),
    )


def relevance(o, target):
    forward = HFForward(o.model)
    return AttentionRelevance(forward).attribute(**forward.inputs(o.encoding), target=target)


def decompose(o, target):
    forward = HFForward(o.model)
    return DecompX(forward).attribute(**forward.inputs(o.encoding), target=target)


def with_mask(o, shape):
    return attention_maps(o.model, {"input_ids": o.ids, "attention_mask": torch.ones(shape)})


def writing(o, count):
    llm = LLMAttentionAttribution(AttentionNorm(o.decoder), o.decoder_tokenizer)
    return llm.attribute("a warm film", gen_args={"max_new_tokens": count})


LINKS, GOLD = [[(0, 0)]], [GoldLinks({(0, 0)})]
NAME = r"got the name 'bert-base-uncased'\. Load it first, .*from_pretrained\('bert-base-uncased'\)"
ONE_AXIS = r"input_ids has the shape \(9,\), but the model takes \(batch, token\)\. .*input_ids\[None\]"
NO_NUMBERS = r"bert\.embeddings\.word_embeddings\.weight is on the meta device, .*Load the weights"
CLASS_NAME = r"target='good' should be the number of a class: model\.config\.label2id\['good'\]"
TOO_LARGE = r"target=7 does not fit the output of the model.*Give an int"

CALLS = {
    # the ten that newcomers met
    "1-d ids, maps": (lambda o: attention_maps(o.model, o.ids[0]), ValueError, ONE_AXIS),
    "1-d ids, encoding": (lambda o: attention_maps(o.model, {"input_ids": o.ids[0]}), ValueError, ONE_AXIS),
    "1-d ids, layers": (lambda o: attention_layers(o.model, o.ids[0]), ValueError, ONE_AXIS),
    "1-d ids, certificates": (lambda o: checked_calls(o.model, o.ids[0]), ValueError, ONE_AXIS),
    "1-d ids, attribution": (lambda o: AttentionNorm(o.model).attribute(o.ids[0]), ValueError, ONE_AXIS),
    "a name, maps": (lambda o: attention_maps("bert-base-uncased", o.encoding), TypeError, NAME),
    "a name, layers": (lambda o: attention_layers("bert-base-uncased", o.ids), TypeError, NAME),
    "a name, attribution": (lambda o: AttentionNorm("bert-base-uncased").attribute(o.ids), TypeError, NAME),
    "a name, HFForward": (lambda o: HFForward("bert-base-uncased"), TypeError, "a torch.nn.Module, got str"),
    "a name, run_method": (lambda o: run_method("Saliency", "bert", o.encoding, 1), TypeError, "Module, got str"),
    "a class name, relevance": (lambda o: relevance(o, "good"), AssertionError, CLASS_NAME),
    "a class, norm": (lambda o: run_method("AttentionNorm", o.model, o.encoding, "good"), AssertionError, CLASS_NAME),
    "a class name, Captum's": (lambda o: run_method("Saliency", o.model, o.encoding, "good"), ValueError, CLASS_NAME),
    "a target too large": (lambda o: relevance(o, 7), IndexError, TOO_LARGE),
    "a target too large, shape": (lambda o: relevance(o, 7), IndexError, r"\(1, 2\)\. Its classes are 0 to 1"),
    "a target too large, in a list": (lambda o: relevance(o, [7]), IndexError, r"target=\[7\] does not fit.* 0 to 1"),
    "a foil too large": (lambda o: decompose(o, (0, 7)), IndexError, r"target=\(0, 7\), with a class.* 0 to 1"),
    "a foil too large, listed": (lambda o: decompose(o, [(0, 7)]), IndexError, r"target=\[\(0, 7\)\], with.* 0 to 1"),
    "a target too large, Captum's": (lambda o: run_method("Saliency", o.model, o.encoding, 7), ValueError, TOO_LARGE),
    "a target that is a float": (lambda o: relevance(o, 1.0), AssertionError, r"target=1\.0 does not fit"),
    "two targets for one": (lambda o: relevance(o, [0, 1]), AssertionError, r"target=\[0, 1\] does not fit"),
    "a set for links": (lambda o: alignment_error_rate([{0, 1}], GOLD), TypeError, r"pairs \(source word"),
    "links of one sentence": (lambda o: alignment_error_rate({(0, 0)}, GOLD), TypeError, r"give a list of one: \[\["),
    "gold of one sentence": (lambda o: alignment_error_rate(LINKS, {(0, 0)}), TypeError, "one GoldLinks per sentence"),
    "text for links": (lambda o: alignment_score(["0-0"], GOLD), TypeError, "got '0-0' for sentence 0"),
    "numbers for links": (lambda o: error_rate_difference([3], LINKS, GOLD), TypeError, "got 3 for sentence 0"),
    "links of other sentences": (lambda o: alignment_score(LINKS * 2, GOLD), ValueError, "links of 2 sentences, but"),
    "too many new tokens": (lambda o: writing(o, 99), ValueError, "after a prompt of 3 .* 32 positions .*At most 29"),
    "plot a tensor": (lambda o: plot(torch.ones(3, 3)), TypeError, "got Tensor. token_map draws one matrix"),
    "plot a list": (lambda o: plot([o.maps]), TypeError, r"plot draws what attention_maps.* got list"),
    "plot nothing": (lambda o: plot(None), TypeError, "got NoneType"),
    "on meta, maps": (lambda o: attention_maps(o.empty, o.encoding), ValueError, NO_NUMBERS),
    "on meta, attribution": (lambda o: AttentionNorm(o.empty).attribute(o.ids), ValueError, NO_NUMBERS),
    "on meta, HFForward": (lambda o: HFForward(o.empty).inputs(o.encoding), ValueError, NO_NUMBERS),
    "ids on meta": (lambda o: attention_maps(o.model, o.ids.to("meta")), ValueError, "input_ids is on the meta device"),
    # models
    "a class for a model": (
        lambda o: attention_maps(type(o.model), o.ids), TypeError, r"got the class Bert.*Make a model of it",
    ),
    "no model": (lambda o: attention_maps(None, o.ids), TypeError, "a torch.nn.Module or a function, got NoneType"),
    "a tokenizer's vocabulary for a model": (lambda o: attention_layers({"a": 1}, o.ids), TypeError, "got dict"),
    "no attention": (lambda o: attention_maps(nn.Linear(3, 3), torch.ones(1, 3)), ValueError, "no attention call"),
    # inputs
    "a text for inputs": (lambda o: attention_maps(o.model, TEXT), TypeError, r"with a str.*tokenizer\("),
    "a list for inputs": (lambda o: attention_maps(o.model, o.ids.tolist()), TypeError, "with a list.*return_tensors"),
    "no inputs": (lambda o: attention_maps(o.model, None), TypeError, "cannot be called with a NoneType"),
    "an encoding of lists": (
        lambda o: attention_maps(o.model, o.tokenizer(TEXT)), TypeError, "input_ids is a list.*return_tensors='pt'",
    ),
    "a text for attribute": (lambda o: AttentionNorm(o.model).attribute(TEXT), TypeError, "a tensor .*tokenizer"),
    "a text for HFForward": (lambda o: HFForward(o.model).inputs(TEXT), TypeError, "Tokenize first"),
    "no tokens": (lambda o: attention_maps(o.model, o.ids[:, :0]), ValueError, "is empty.*at least one token"),
    "ids beyond the vocabulary": (lambda o: attention_maps(o.model, o.ids + 99), ValueError, "the model knows 0 to"),
    "negative ids": (lambda o: attention_maps(o.model, -o.ids), ValueError, "Does the tokenizer belong"),
    "float ids": (lambda o: attention_maps(o.model, o.ids.float()), TypeError, "looks up token ids"),
    "too many tokens": (lambda o: attention_maps(o.model, o.ids.repeat(1, 4)), ValueError, "ends at 32. Shorten"),
    "a mask that is too short": (lambda o: with_mask(o, (1, 3)), ValueError, r"mask is \(1, 3\): it belongs"),
    "a mask of another batch": (lambda o: with_mask(o, (4, 9)), ValueError, r"mask is \(4, 9\): it belongs"),
    # what to keep
    "no quantities": (lambda o: attention_maps(o.model, o.ids, ()), ValueError, "was asked for no quantity"),
    "None for quantities": (lambda o: attention_maps(o.model, o.ids, None), TypeError, "names of measures, got None"),
    "a number for quantities": (lambda o: attention_maps(o.model, o.ids, 3), TypeError, "names of measures, got 3"),
    "a misspelt quantity": (
        lambda o: attention_maps(o.model, o.ids, "weight"), ValueError, r"quantity 'weight'\. Did you mean weights\?",
    ),
    "a layer that is not there": (lambda o: attention_maps(o.model, o.ids, layers=9), ValueError, NOTHING_SHOWN),
    "a layer by a wrong name": (lambda o: attention_maps(o.model, o.ids, layers="bert.top"), ValueError, NOTHING_SHOWN),
    "a layer that is half": (lambda o: attention_maps(o.model, o.ids, layers=0.5), TypeError, "indices or names.*0.5"),
    "True for a layer": (lambda o: attention_maps(o.model, o.ids, layers=True), TypeError, "indices or names .*True"),
    "a head that is not there": (lambda o: attention_maps(o.model, o.ids, head_indices=9), ValueError, "has 4 heads"),
    "half a head": (lambda o: attention_maps(o.model, o.ids, head_indices=0.5), TypeError, "one or more ints, got 0.5"),
    "a row that is not there": (lambda o: attention_maps(o.model, o.ids, positions=99), ValueError, "has 9 rows"),
    "a word for a row": (lambda o: attention_maps(o.model, o.ids, positions="cls"), TypeError, "one or more ints"),
    # maps
    "a call that is not there": (lambda o: o.maps.weights[9], IndexError, "weights has no call 9, only 0 to 1"),
    "tokens of no call": (lambda o: o.maps.key_tokens(9), IndexError, "there is no call 9, only 0 to 1"),
    "tokens of no example": (lambda o: o.maps.query_tokens(0, 9), IndexError, "no example 9, only 0 to 0"),
    "a measure not asked for": (lambda o: o.maps.head_norms, AttributeError, "was not computed.*Ask for it"),
    "a table of what is not there": (lambda o: o.maps.to_pandas("alti"), AttributeError, "alti was not computed"),
    "no device": (lambda o: o.maps.to("abacus"), ValueError, "'abacus' is no device"),
    "no file to save to": (lambda o: o.maps.save(None), TypeError, "should be named by a text or a Path, got None"),
    "no file to load": (lambda o: AttentionMaps.load(None), TypeError, "should be named by a text or a Path, got None"),
    "a file that is not there": (lambda o: AttentionMaps.load("no.maps"), FileNotFoundError, "no such file"),
    "a page with no name": (lambda o: o.maps.to_html(3), TypeError, "should be named by a text or a Path, got 3"),
    # methods
    "a misspelt method": (lambda o: known_methods(["Salency"]), ValueError, "Did you mean Saliency?"),
    "no method": (lambda o: known_methods([None]), ValueError, "unknown method None"),
    "no target": (lambda o: run_method("Saliency", o.model, o.encoding), ValueError, "so it needs a target"),
    "a method that wraps none": (lambda o: Attributor("Saliency", o.model, over="Lime"), ValueError, "wraps no other"),
    "an unknown option": (
        lambda o: Attributor("AttentionNorm", o.model, options={"aggregation": "flow"}), ValueError, "cannot be made",
    ),
    "an unknown aggregate": (lambda o: AttentionNorm(o.model, aggregate="sum"), ValueError, "is not known: use"),
    "a layer by name": (
        lambda o: LayerAttentionNorm(o.model, "bert").attribute(o.ids), TypeError, "layer should be a module",
    ),
    "DecompX without a target": (
        lambda o: DecompX(HFForward(o.model)).attribute(**HFForward(o.model).inputs(o.encoding)),
        ValueError, "give a class",
    ),
    "rollout of an empty text": (lambda o: AttentionRollout(o.model).attribute(o.ids[:, :0]), ValueError, "is empty"),
    "value zeroing of a name": (lambda o: ValueZeroing("bert-base-uncased").attribute(o.ids), TypeError, NAME),
    "words of another text": (lambda o: words_of(o.encoding, "Other"), ValueError, "as it was given to the tokenizer"),
    "words of no encoding": (lambda o: words_of(TEXT, TEXT), TypeError, "encoding should be what a tokenizer returned"),
    # explaining and comparing
    "a text to explain": (lambda o: explain(AttentionNorm(o.model), TEXT), TypeError, "takes a tokenizer's encoding"),
    "a model to explain with": (lambda o: explain(o.model, o.encoding), TypeError, "takes a method.*the model itself"),
    "words without a text": (
        lambda o: explain(AttentionNorm(o.model), o.encoding).word_scores(), ValueError, "words need the text",
    ),
    "nothing to compare": (lambda o: compare(o.model, o.tokenizer, ""), ValueError, "the text is empty"),
    "a list to compare": (lambda o: compare(o.model, o.tokenizer, [TEXT]), TypeError, "as a str, got list"),
    "no tokenizer": (lambda o: compare(o.model, None, TEXT), TypeError, "the tokenizer should be .*got NoneType"),
    "a name to compare with": (lambda o: compare("bert-base-uncased", o.tokenizer, TEXT), TypeError, NAME),
    "a place beyond the text": (
        lambda o: compare(o.model, o.tokenizer, TEXT, position=99), ValueError, "the text has 9 tokens, 0 to 8",
    ),
    "a word that is misspelt": (
        lambda o: compare(o.model, o.tokenizer, TEXT, position="flim"), ValueError, "no such word. Did you mean film",
    ),
    "special tokens by a wrong word": (
        lambda o: compare(o.model, o.tokenizer, TEXT, specials="none"), ValueError, "should be 'keep' or 'drop'",
    ),
    # pages and figures
    "too few labels for a page": (lambda o: o.maps.to_html(tokens=["a"]), ValueError, "1 labels; example 0 has 9"),
    "a prompt beyond the text": (lambda o: o.maps.to_html(prompt=99), ValueError, "prompt=99, but example 0 has 9"),
    "an example of no batch": (lambda o: o.maps.to_html(examples=[7]), ValueError, "the batch holds 1"),
    "a figure of no call": (lambda o: plot(o.maps, call=9), ValueError, "maps holds 2 attention calls"),
    "a figure of no head": (lambda o: plot(o.maps, call=0, heads=9), ValueError, "call 0 holds heads 0, 1, 2, 3"),
    "a figure of what is not there": (lambda o: plot(o.maps, quantities=["alti"]), ValueError, "ask for it"),
    "a figure with too few tokens": (lambda o: token_map(torch.ones(3, 3), ["a"]), ValueError, "tokens holds 1"),
    "a figure of no width": (lambda o: plot(o.maps, call=0).fit(width=-1), ValueError, "give width or font_size"),
    # decoders and alignments
    "an encoder for a decoder": (
        lambda o: ALTILogit(o.model).attribute(o.ids, target=1), ValueError, "explains decoders.*DecompX all",
    ),
    "a decoder without a target": (lambda o: ALTILogit(o.decoder).attribute(o.ids), ValueError, "give target="),
    "a span beyond the text": (
        lambda o: SpanTrace(o.decoder).attribute(o.ids, span=(5, 99)), ValueError, "start < stop <= 9",
    ),
    "an aligner without cross-attention": (
        lambda o: CrossAttentionAligner(o.model, o.tokenizer), ValueError, "no cross-attention",
    ),
    "two calls of one": (lambda o: AttentionNorm(o.model).attribute(o.ids, call=9), ValueError, "no attention call"),
    "an unknown kind": (lambda o: AttentionNorm(o.model).attribute(o.ids, kind="both"), ValueError, '"cross" or None'),
    "a name that is not there": (lambda o: captum_norm.AttentionNorms, AttributeError, "has no attribute"),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_cannot_be_answered_says_what_was_found_and_the_way_out(made, name):
    call, kind, said = CALLS[name]
    with pytest.raises(kind, match=said) as raised:
        call(made)
    assert type(raised.value) is kind


LINES = {
    "compare '' ": "the text is empty",
    "compare x --traget 1": r"there is no option --traget\. Did you mean --target\?",
    "compare x --methods Salency": r"Did you mean Saliency\?",
    "compare x --methods Saliency,Lmie": r"unknown method 'Lmie'\. Did you mean Lime\?",
    "compare x --target godo": r"no such class\. There are: bad, good\. Did you mean good\?",
    "compare x --target 9": "the model has 2 outputs, 0 to 1",
    "compare x --target -1": "the model has 2 outputs, 0 to 1",
    "compare x --figure -": "its ending should say the format",
    "compare x --figure scores": "its ending should say the format",
    "compare x --json folder": "is a folder: name a file inside it",
    "compare x --json no/such/x.json": "the folder no/such does not exist. Make it first",
    "compare x --json a.svg --figure a.svg": "is named for two outputs",
    "compare x --json round": "a link that leads round in a circle",
    "compare x --top 0": "--top 0 should be at least 1",
    "compare x --file some.txt": "give TEXT or --file, not both",
    "compare --file blank.txt": "there is no text in it",
    "compare --file missing.txt": "missing.txt",
    "compare x --specials none": "invalid choice: 'none'",
    "compare x --position 99": "the text has",
    "view x -o folder": "is a folder",
    "compare x --device cuda:99": "is not available on this machine; here there is cpu",
    "certify --json - --text ''": "--text is empty",
    "tokens": "required: --text",
    "tokens --text missing.txt": "missing.txt: no such file",
    "tokens --text blank.txt": "holds no paragraph",
    "tokens --text some.txt --batch-size 0": "should be a whole number of at least 1",
    "tokens --text some.txt --max-tokens 1.5": "should be a whole number of at least 1",
    "view x": "required: -o",
    "view x -o y.html --generate 3": "writes no tokens",
    "view x -o y.html --layers 9": NOTHING_SHOWN,
    "viwe x": r"invalid choice: 'viwe'.*Did you mean view\?",
    "compare x y": "put a text of several words in quotes",
    "align --source some.txt": "belong together",
    "align --layer first": "should be a number from 0 on, or mean",
    "align --method nrom": r"there are .*Did you mean norm\?",
    "study": "give the file of a study, or --quick",
    "study missing.toml": "there is no such file",
    "study some.txt": "is no TOML",
    "study name.toml": r"\[model\]: name should be a text in quotes, got 3",
    "study limit.toml": r"\[data\]: limit should be a whole number, got 'ten'",
    "study batch.toml": r"\[study\]: batch_size should be a whole number, got True",
    "study key.toml": r"unknown key 'metods'.*Did you mean methods\?",
    "study table.toml": r"\[model\] should be a table",
    "study list.toml": "methods should be a list, got 'Saliency'",
    "study --quick --limit 0": "should be at least 1",
    "report missing.db": "missing.db",
    "report missing.db --parquet -": "Name a file",
}
FILES = {
    "blank.txt": "\n\n",
    "some.txt": "a warm film\n",
    "name.toml": "[model]\nname = 3\n",
    "limit.toml": '[data]\nlimit = "ten"\n',
    "batch.toml": "[study]\nbatch_size = true\n",
    "key.toml": "[study]\nmetods = []\n",
    "table.toml": "model = 3\n",
    "list.toml": '[study]\nmethods = "Saliency"\n',
}


@pytest.mark.parametrize("line", LINES)
def test_a_line_that_cannot_be_answered_is_answered_in_one(capsys, folders, tmp_path, monkeypatch, line):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "round").symlink_to("round")
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    before = sorted(tmp_path.rglob("*"))
    words = [word.strip("'") for word in line.split()]
    takes_a_model = words[0] in ("compare", "certify", "tokens", "view")
    code, out, err = answer(capsys, *words, *(("--model", folders / "classifier") if takes_a_model else ()))
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert re.search(LINES[line], err), err
    assert sorted(tmp_path.rglob("*")) == before


def test_every_bad_input_is_told_apart():
    assert len(CALLS) + len(LINES) >= 130
