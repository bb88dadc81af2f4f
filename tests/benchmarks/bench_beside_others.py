"""Three jobs in this package and in others: how many statements, how many seconds, and is something there to see?

    pip install bertviz inseq transformers-interpret
    python -m tests.benchmarks.bench_beside_others

A text is looked at, three methods are compared on it, and attention maps are browsed: with the embedded classifier, and
with an untrained Llama of its size for inseq, which explains what is written.  Models are loaded before.  What
is not installed is left out.
"""

import ast
import importlib.util
import time
import warnings

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from captum_norm.models import load_sentiment

TEXT = "It is not a great film, but a warm, funny and oddly moving one."
_CAPTUM = """
from captum.attr import FeatureAblation, LayerGradientXActivation, LayerIntegratedGradients, visualization
encoding = tokenizer(text, return_tensors="pt")
def logits(ids, mask):
    return model(input_ids=ids, attention_mask=mask).logits
ids, given = encoding["input_ids"], {"target": 1, "additional_forward_args": encoding["attention_mask"]}
[chances] = logits(ids, encoding["attention_mask"]).softmax(-1)
padding, layer = torch.full_like(ids, tokenizer.pad_token_id), model.bert.embeddings
found = {"IntegratedGradients": LayerIntegratedGradients(logits, layer).attribute(ids, baselines=padding, **given)}
"""
_MORE = """
found["InputXGradient"] = LayerGradientXActivation(logits, layer).attribute(ids, **given)
found["FeatureAblation"] = FeatureAblation(logits).attribute(ids, baselines=padding, **given)
"""
_RECORDS = """
tokens, records = tokenizer.convert_ids_to_tokens(ids[0]), []
for name, scores in found.items():
    scores = scores.sum(-1)[0] if scores.ndim == 3 else scores[0]
    scores = scores / scores.norm()
    said = float(chances.max()), int(chances.argmax()), 1, name, float(scores.sum())
    records.append(visualization.VisualizationDataRecord(scores, *said, tokens, None))
visualization.visualize_text(records).data
"""
_INSEQ = """
import inseq
decoder.set_attn_implementation("eager")
explained = inseq.load_model(decoder, "input_x_gradient", tokenizer=decoder_tokenizer)
"""
JOBS = {
    ("captum-norm", "look"): """
from captum_norm import AttentionNorm, explain
explain(AttentionNorm(model), tokenizer(text, return_tensors="pt"), text=text)._repr_html_()
""",
    ("captum-norm", "compare"): """
from captum_norm.comparison import compare
compare(model, tokenizer, text, methods=["AttentionNorm", "DecompX", "IntegratedGradients"])._repr_html_()
""",
    ("captum-norm", "browse"): """
from captum_norm import attention_maps
attention_maps(model, tokenizer(text, return_tensors="pt"))._repr_html_()
""",
    ("bertviz", "browse"): """
from bertviz import head_view
model.set_attn_implementation("eager")
encoding = tokenizer(text, return_tensors="pt")
output = model(**encoding, output_attentions=True)
tokens = tokenizer.convert_ids_to_tokens(encoding["input_ids"][0])
head_view(output.attentions, tokens, html_action="return").data
""",
    ("captum", "look"): _CAPTUM + _RECORDS,
    ("captum", "compare"): _CAPTUM + _MORE + _RECORDS,
    ("transformers_interpret", "look"): """
from transformers_interpret import SequenceClassificationExplainer
explainer = SequenceClassificationExplainer(model, tokenizer)
explainer(text)
explainer.visualize().data
""",
    ("inseq", "look"): _INSEQ + """
explained.attribute(prompt, written, show_progress=False).show(return_html=True, display=False)
""",
    ("inseq", "compare"): _INSEQ + """
for method in ("attention", "input_x_gradient", "integrated_gradients"):
    out = explained.attribute(prompt, written, method=method, show_progress=False)
    shown = out.show(return_html=True, display=False)
shown
""",
}


def statements(code: str) -> int:
    """Those inside of loops and functions, too."""
    return sum(isinstance(node, ast.stmt) for node in ast.walk(ast.parse(code)))


def answer(code: str, names: dict[str, object]) -> object:
    """The value of the last line."""
    tree = ast.parse(code)
    last = tree.body.pop()
    assert isinstance(last, ast.Expr)
    exec(compile(tree, "job", "exec"), names)
    return eval(compile(ast.Expression(last.value), "job", "eval"), names)


def language_model() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """An untrained decoder of the classifier's size that knows the words of the text."""
    words = ["<unk>", "<s>", *dict.fromkeys(TEXT.replace(",", " ,").replace(".", " .").split())]
    pieces = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "<s>", "pad_token": "<unk>"}
    sizes = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 12}
    config = LlamaConfig(vocab_size=len(words), bos_token_id=1, eos_token_id=1, pad_token_id=0, **sizes)
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval(), PreTrainedTokenizerFast(tokenizer_object=pieces, **special)


def main() -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    model, tokenizer = load_sentiment()
    decoder, decoder_tokenizer = language_model()
    for (package, job), code in JOBS.items():
        if importlib.util.find_spec(package.replace("-", "_")) is None:
            print(f"{package}, {job}: not installed")
            continue
        seconds = []
        for _ in range(2):
            names = {
                "model": model, "tokenizer": tokenizer, "text": TEXT, "torch": torch, "decoder": decoder,
                "decoder_tokenizer": decoder_tokenizer, "prompt": TEXT[:22],
                "written": TEXT.replace(",", " ,").replace(".", " ."),
            }  # fmt: skip
            start = time.perf_counter()
            assert answer(code, names)
            seconds.append(time.perf_counter() - start)
        print(f"{package}, {job}: {statements(code)} statements, {seconds[0]:.1f} s, again {seconds[1]:.1f} s")


if __name__ == "__main__":
    main()
