"""A page for each method that scores tokens: formula, what it can and cannot tell, and its answer on one sentence.

What a score is, its cost and its source are read from the table of the page of methods; formula and judgement stand
here, a row for each class.  The pages are written anew with each build and run like any other.
"""

import re
from pathlib import Path
from typing import NamedTuple

TEXT = "It is not a great film, but a warm, funny and oddly moving one."


class Row(NamedTuple):
    """One method: its formula, what it can tell, what it cannot, what its example needs, and whether of a decoder."""

    formula: str
    can: str
    cannot: str
    needs: str = ""
    decoder: bool = False


ROWS = {
    "AttentionWeights": Row(
        r"\operatorname{mean}_{\ell,h}\ \alpha^{\ell,h}_{ij}",
        "where a position looks.",
        "how much it takes from there: a large weight on a short vector moves little.",
    ),
    "AttentionNorm": Row(
        r"\operatorname{mean}_\ell\ \Bigl\lVert \sum_h \alpha^{\ell,h}_{ij} f^{\ell,h}(x_j) \Bigr\rVert, \qquad "
        r"f(x) = (x W_V + b_V)\, W_O",
        "how much attention moves from one position to another, in the same units for every layer and head.",
        "what the residual and the norms make of it, nor in which direction it is added.",
    ),
    "AttentionRollout": Row(
        r"\prod_\ell \tfrac12 \bigl(A^\ell + I\bigr), \qquad A^\ell = \operatorname{mean}_h \alpha^{\ell,h}",
        "where looking leads to through all layers.",
        "what a layer's residual really keeps: it is taken for half, whatever the model does.",
    ),
    "AttentionFlow": Row(
        r"\operatorname{maxflow}_{j \to i}\Bigl(\tfrac12 (A^\ell + I)\Bigr)_\ell",
        "how much could reach a position from an input at most, limited by the narrowest passage.",
        "what does reach it; and it takes long, a maximum flow for each score.",
    ),
    "AttentionBlockNorm": Row(
        r"\operatorname{mean}_\ell\ \Bigl\lVert N\Bigl(\sum_h \alpha^h_{ij} f^h(x_j) + [j = i]\, x_i\Bigr)\Bigr\rVert",
        "how much a layer mixes, with its own residual and norm.",
        "what the feed-forward part makes of the state.",
    ),
    "GlobEnc": Row(
        r"\prod_\ell E^\ell, \qquad "
        r"E^\ell_{ij} = \Bigl\lVert N_2\Bigl(N\bigl(\sum_h \alpha^h_{ij} f^h(x_j) + [j = i] x_i\bigr)\Bigr)\Bigr\rVert",
        "which inputs reach the final state, through residuals as the model has them.",
        "shares: a product of lengths is neither a length nor a share.",
    ),
    "ALTI": Row(
        r"\prod_\ell C^\ell, \qquad C_{ij} = \frac{\max(0, \lVert y_i \rVert_1 - \lVert y_i - T_i(x_j) \rVert_1)}"
        r"{\sum_k \max(0, \lVert y_i \rVert_1 - \lVert y_i - T_i(x_k) \rVert_1)}",
        "helping from opposing: a part that points away from the output counts nothing, however long it is.",
        "how strongly a part opposes; and the norm depends on the basis.",
    ),
    "ValueZeroing": Row(
        r"\prod_\ell S^\ell, \qquad S_{ij} = \frac{1 - \cos(y_i, y_i^{\neg j})}{\sum_k 1 - \cos(y_i, y_i^{\neg k})}",
        "what a layer would lack without an input's values: it asks the layer itself, feed-forward part and all.",
        "the direction of a change, nor what two inputs do together.",
    ),
    "InformationFlowRoutes": Row(
        r"\max_{\text{routes } j \to i}\ \min_{\text{edges}}\ c, \qquad c(z) = "
        r"\frac{\max(0, \lVert y \rVert_1 - \lVert y - z \rVert_1)}{\sum_{z'} \max(0, \lVert y \rVert_1 - "
        r"\lVert y - z' \rVert_1)}",
        "by which states, heads and feed-forward parts a row was written: the routes are there, not only their ends.",
        "how much of a row is a token's: a score is the weakest edge of a route, and shares are not multiplied.",
    ),
    "AttentionRelevance": Row(
        r"R \leftarrow R + \bar A R, \qquad "
        r"\bar A = \operatorname{mean}_h \max\Bigl(0, \frac{\partial L}{\partial \alpha^h} \odot \alpha^h\Bigr)",
        "classes apart: a token that speaks for another class gets other scores.",
        "for from against: what lowers the output is cut off.",
        "target=1",
    ),
    "DecompX": Row(
        r"L = \sum_j c_j + \text{biases}, \qquad c_j = \frac{\partial \tilde L}{\partial x_j}\, x_j, \quad "
        r"\tilde L \text{ with weights, norms and slopes held fixed}",
        "signed shares of each token that add up to the logit.",
        "why attention looked where it did: weights, norms and gates are held fixed.",
        "target=1",
    ),
    "ALTILogit": Row(
        r"c_k = \sum_\ell \sum_j \Bigl\langle g, \sum_h \alpha^h_{ij} f^h(x_j)\Bigr\rangle\, "
        r"\Bigl(\prod_{m<\ell} C^m\Bigr)_{jk}, \qquad g = \frac{\partial\, \text{logit}}{\partial x_i}",
        "which tokens speak for one continuation and against another, signed, in logits.",
        "what feed-forward parts and the embedding say: they are given to no token.",
        "target=int(encoding['input_ids'][0, 3])",
        decoder=True,
    ),
    "SpanTrace": Row(
        r"\max\bigl(0, \lVert X\rVert_1 - \lVert X - z_j\rVert_1\bigr), \qquad "
        r"X = \sum_i u_i y_i, \quad z_j = \sum_h \Bigl(\sum_i u_i \alpha^h_{ij}\Bigr) f^h(x_j)",
        "which passage a whole answer's rows took their content from, in one pass.",
        "what a key had mixed before; it looks at no class.",
        "span=(9, 14)",
        decoder=True,
    ),
}

CLASSIFIER = f"""\
from captum_norm.models import load_sentiment

model, tokenizer = load_sentiment()
text = "{TEXT}\""""
DECODER = """\
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

text = "the film is warm and never feels forced but the plot is thin ."
words = ["<unk>", *dict.fromkeys(text.split())]
pieces = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
pieces.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=pieces, unk_token="<unk>")
torch.manual_seed(0)  # an untrained decoder, for the shape of an answer: yours comes from from_pretrained
sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, initializer_range=0.2)
model = LlamaForCausalLM(LlamaConfig(vocab_size=len(words), eos_token_id=None, **sizes)).eval()"""

PAGE = """\
---
file_format: mystnb
kernelspec:
  name: python3
---

# {name}

A score is {score}.

$${formula}$$

- **It can tell** {can}
- **It cannot tell** {cannot}
- **A row sums to** {total}. **Cost**, in forward passes: {cost}. **Source**: {source}.

```{{code-cell}} ipython3
:tags: [hide-input]
from captum_norm import AttentionWeights, {name}, explain
from captum_norm.visualization import method_strips
{model}
encoding = tokenizer(text, return_tensors="pt")
weights = explain(AttentionWeights(model), encoding, text=text)
found = explain({name}(model), encoding, text=text{needs})
```

```{{code-cell}} ipython3
found
```

```{{code-cell}} ipython3
:mystnb:
:  image:
:    alt: "Each word of the sentence on the colour of its score by {name}, with attention weights above for comparison."
scores = {{"AttentionWeights": weights.word_scores(), "{name}, here": found.word_scores()}}
method_strips(scores, found.words[0].strings)
```

The class, its arguments and what it raises: {{class}}`captum_norm.{name}`. {{doc}}`/methods` has the formulas in one
alphabet, and which method answers which question.
"""


def write(folder: Path, overview: str) -> None:
    """The pages of all methods, from the rows here and the table of the overview."""
    folder.mkdir(exist_ok=True)
    told = {name: [cell.strip() for cell in cells.split("|")] for name, cells in TABLE.findall(overview)}
    for name, row in ROWS.items():
        score, total, _, cost, source = told[name][:5]
        text = PAGE.format(
            name=name, score=score if score.startswith("how") else f"the {score}", source=source,
            formula=row.formula, can=row.can, cannot=row.cannot,
            total="nothing in particular" if total == "–" else total, cost=cost,
            needs=f", {row.needs}" if row.needs else "", model=DECODER if row.decoder else CLASSIFIER,
        )  # fmt: skip
        page = folder / f"{name}.md"
        if not page.is_file() or page.read_text(encoding="utf-8") != text:  # unchanged pages are not run again
            page.write_text(text, encoding="utf-8")


TABLE = re.compile(r"^\| \{class\}`~captum_norm\.(\w+)` \|(.+)\|$", re.MULTILINE)
