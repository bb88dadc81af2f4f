"""The tables of the alignment page: the embedded model on gold alignments, and three seeds of the synthetic task.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.report_alignment gold --source test.de --target test.en \\
        --gold alignment.talp [--weights run/translation.safetensors] [--card]
    OMP_NUM_THREADS=1 python -m tests.benchmarks.report_alignment synthetic [--seeds 3]

Layer and setting are chosen on the first 100 gold pairs and reported on the others; the synthetic task has development
sentences of its own.  ``--card`` writes the chosen places' error rates into the description beside the weights.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from captum_norm.alignment import (
    METHODS,
    AlignmentEvaluation,
    Choice,
    CrossAttentionAligner,
    GoldLinks,
    Link,
    error_rate_difference,
    read_links,
    read_sentences,
)
from captum_norm.alignment.evaluation import EvaluationRow
from captum_norm.alignment.synthetic import KnownPair, known_pairs, trained
from captum_norm.files import replacing
from captum_norm.models import load_translation
from captum_norm.models.translation import TRANSLATION_WEIGHTS

DEV = 100
Pairs = Sequence[tuple[Sequence[str], Sequence[str]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    on = parser.add_subparsers(dest="on", required=True)
    gold = on.add_parser("gold")
    for name in ("--source", "--target", "--gold"):
        gold.add_argument(name, required=True)
    gold.add_argument("--weights", type=Path, default=TRANSLATION_WEIGHTS)
    gold.add_argument("--methods", nargs="+", default=[name for name in METHODS if name != "value_zeroing"])
    gold.add_argument("--card", action="store_true")
    synthetic = on.add_parser("synthetic")
    synthetic.add_argument("--seeds", type=int, default=3)
    synthetic.add_argument("--steps", type=int, default=600)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.on == "gold":
        report_gold(asked)
    else:
        report_synthetic(asked.seeds, asked.steps)


def report_gold(asked: argparse.Namespace) -> None:
    """The embedded model, or another file of weights, on gold alignments."""
    pairs = read_sentences(asked.source, asked.target)
    gold = read_links(asked.gold, "talp", first=1, sentences=len(pairs))
    model, tokenizer = load_translation(weights=asked.weights)
    rates: dict[str, float] = {}
    chosen: dict[str, tuple[Choice, list[list[Link]]]] = {}
    rows, layers = [], []
    for method in asked.methods:
        aligner = CrossAttentionAligner(model, tokenizer, method).fit(pairs[:DEV], gold[:DEV])
        rest, whole = aligner.evaluate(pairs[DEV:], gold[DEV:]), aligner.evaluate(pairs, gold)
        assert rest.chosen is not None
        assert aligner.choice is not None
        rates[method] = round(100 * rest.chosen.score.error_rate, 2)
        chosen[method] = (aligner.choice, aligner.links_everywhere(pairs[DEV:])[aligner.choice])
        rows.append(f"| {METHODS[method].title} | {_place(rest.chosen)} | {_place(whole.best())} | {_heads(whole)} |")
        layers += [_layer_row(whole, method, layer) for layer in range(whole.layers())]
        layers.append(_mean_row(whole, method))
        diagonal = rest.diagonal
    dev, count = f"chosen on the first {DEV}", len(pairs)
    print(f"\n| method | {dev}, on the other {count - DEV} | best layer on all {count} | best head on all |")
    print("|---|---|---|---|\n" + "\n".join(rows))
    print(f"| diagonal | {100 * diagonal.error_rate:.1f} ({100 * diagonal.low:.1f}-{100 * diagonal.high:.1f}) | | |")
    print(f"\n| method, layer | AWI | its heads | </s> | punct. | AWO | its heads | </s> | punct. |\n{'|---' * 9}|")
    print("\n".join(layers) + "\n")
    _differences(chosen, gold[DEV:])
    print({method: str(choice) for method, (choice, _) in chosen.items()})
    if asked.card:
        _write_card(asked.weights, rates)


def _differences(chosen: dict[str, tuple[Choice, list[list[Link]]]], gold: Sequence[GoldLinks]) -> None:
    if "weights" not in chosen:
        return
    for method, (_, links) in chosen.items():
        if method != "weights":
            found = [100 * x for x in error_rate_difference(links, chosen["weights"][1], gold)]
            print(f"{method} minus weights: {found[0]:+.1f} ({found[1]:+.1f} to {found[2]:+.1f})")


def report_synthetic(seeds: int, steps: int) -> None:
    """Small models of the task with known links, one for each seed."""
    dev, test = known_pairs(100, seed=1), known_pairs(400, seed=2)
    print("| seed | method | chosen layer | best head | norm or other minus weight |\n|---|---|---|---|---|")
    for seed in range(seeds):
        model, pieces = trained(seed, steps)
        links: dict[str, list[list[Link]]] = {}
        for method in ("weights", "norm", "block_norm", "alti"):
            whole = CrossAttentionAligner(model, pieces, method, batch_size=64).fit(*_split(dev))
            head = CrossAttentionAligner(model, pieces, method, head="best", batch_size=64).fit(*_split(dev))
            found, best = whole.evaluate(*_split(test)).chosen, head.evaluate(*_split(test)).chosen
            assert found is not None
            assert best is not None
            assert whole.choice is not None
            links[method] = whole.links_everywhere(_split(test)[0])[whole.choice]
            difference = [100 * x for x in error_rate_difference(links[method], links["weights"], _split(test)[1])]
            told = "" if method == "weights" else f"{difference[0]:+.2f} ({difference[1]:+.2f} to {difference[2]:+.2f})"
            print(f"| {seed} | {METHODS[method].title} | {_place(found, 2)} | {_place(best, 2)} | {told} |", flush=True)


def _split(known: Sequence[KnownPair]) -> tuple[Pairs, list[GoldLinks]]:
    return [(pair.source, pair.target) for pair in known], [pair.gold for pair in known]


def _place(row: EvaluationRow, digits: int = 1) -> str:
    rate, low, high = (f"{100 * x:.{digits}f}" for x in (row.score.error_rate, row.score.low, row.score.high))
    return f"{rate} ({low}-{high}), {row.choice}"


def _heads(found: AlignmentEvaluation) -> str:
    best = found.best(heads=True)
    return _place(best) if best.choice.head is not None else ""


def _layer_row(found: AlignmentEvaluation, method: str, layer: int) -> str:
    cells = []
    for setting in ("awi", "awo"):
        row = found.row(setting, layer)
        heads = [found.row(setting, layer, head).score.error_rate for head in range(found.heads(layer))]
        cells += [f"{100 * row.score.error_rate:.1f}", " ".join(f"{100 * rate:.0f}" for rate in heads)]
        cells += [f"{100 * row.special_share:.0f}", f"{100 * row.punctuation_share:.0f}"]
    return f"| {METHODS[method].title} {layer} | " + " | ".join(cells) + " |"


def _mean_row(found: AlignmentEvaluation, method: str) -> str:
    means = " | | | | ".join(f"{100 * found.layer_mean(setting):.1f}" for setting in ("awi", "awo"))
    return f"| {METHODS[method].title} mean | {means} | | | |"


def _write_card(weights: Path, rates: dict[str, float]) -> None:
    path = weights.with_suffix(".json")
    card = json.loads(path.read_text(encoding="utf-8"))
    card["alignment"] = rates
    card["alignment_on"] = "408 sentences of Vilar et al. (2006), AER in %, layer and setting chosen on 100 others"
    with replacing(path) as unfinished:
        unfinished.write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
