"""The page that says which models are read exactly, from the results of a run."""

from __future__ import annotations

import collections
import platform
from collections.abc import Sequence

import torch
import transformers

from tests.coverage.check import Result
from tests.coverage.methods import METHODS, missing, reason
from tests.coverage.refusals import STILL_REFUSED, rightly_refused

STATUS = {
    "exact": "every attention call read exactly",
    "refused": "at least one call refused by name; the others were read exactly",
    "none": "no softmax attention in it",
    "unbuilt": "could not be built or run here",
    "overlooked": "attention that recording did not notice",
    "wrong": "a bug",
}
HEAD = "type class inputs calls error zeroed returned blocks methods status".split()
LEGEND = (
    "*calls*: attention calls in one forward, by kind. *error*: the worst certificate, relative to the attention part."
    " *zeroed*: calls proved by zeroing keys, of those tried. *returned*: attentions that the eager model returns and"
    " that equal the recorded weights. *blocks*: calls whose block was read. *methods*: how many of eight answer"
    " `attribute()` for the model's main input, and why the others do not. *other softmaxes*: over three"
    " axes or more, whose output mixes no values by a"
    " product: gates of experts, deformable attention's weights of sampled pixels."
)


def summary(results: Sequence[Result]) -> str:
    """One line of counts."""
    counts = collections.Counter(r.status for r in results)
    return ", ".join(f"{counts[s]} {s}" for s in STATUS if counts[s]) + f", of {len(results)}"


def page(results: Sequence[Result]) -> str:
    """The whole page, Markdown."""
    counts = collections.Counter(r.status for r in results)
    versions = f"transformers {transformers.__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    parts = [
        "# Which models are read exactly",
        f"Every model type in transformers' `MODEL_MAPPING` ({len(results)}) as a tiny random model, run while"
        f" recording; {versions}, CPU, float32. Made by",
        "```bash\npython -m tests.coverage.run --output docs/coverage.md\n```",
        LONG,
        _table(["status", "types", "meaning"], [[s, str(counts[s]), m] for s, m in STATUS.items() if counts[s]]),
        _evidence([r for r in results if r.status == "exact"], [r for r in results if r.status != "unbuilt"]),
    ]
    parts += _answered([r for r in results if r.answers])
    parts += ["## Refused, though there is an answer", OPEN, _table(["model", "methods", "why"], STILL_REFUSED)]
    refused = rightly_refused({r.model_type: r.answers for r in results if r.answers})
    parts += ["## Rightly refused", RIGHTLY, _table(["types", "what they are", "which"], refused)] if refused else []
    titles = {
        "refused": "Refused",
        "overlooked": "Overlooked",
        "wrong": "Wrong",
        "unbuilt": "Could not be built or run",
    }
    for status, title in titles.items():
        parts += _grouped(title, [r for r in results if r.status == status])
    parts += ["## Every type", LEGEND, _table(HEAD, [_row(r) for r in results])]
    return "\n\n".join(parts) + "\n"


def _evidence(exact: Sequence[Result], ran: Sequence[Result]) -> str:
    proved, opened = sum(r.proved for r in ran), sum(r.opened for r in ran)
    disagreed = sum(len(r.wrong) for r in ran)
    held = sum(any("1/sigma held" in note for note in r.notes) for r in ran)
    calls, worst = sum(r.calls for r in exact), max((r.worst for r in exact), default=0.0)
    equal, different = sum(r.attentions[0] for r in ran), sum(r.attentions[1] for r in ran)
    overlooked = sum(r.status == "overlooked" for r in ran)
    off = max((r.proof_error for r in ran), default=0.0)
    return "\n".join(
        [
            f"* **Untouched.** Outputs while recording are bit-equal to those without in {sum(r.same for r in ran)} of"
            f" {len(ran)} types (torch's fused fast path is off in both).",
            f"* **Certified.** The exact types make {calls} attention calls; the worst certificate error is {worst:.1e}"
            " of the attention part.",
            "* **Proved without the certificate.** One key's values are set to zero inside the running model, one level"
            " below where recording looks; what the output projection then lacks is the record's own vector, at every"
            f" query, in {proved} of {proved + opened + disagreed} calls tried (largest difference {off:.1e} of the"
            f" output; {disagreed} disagreed, {opened} could not be tried). In {held} types a norm stands between"
            " attention and W_O: its 1/σ, which depends on the values, was held, as a record holds it.",
            f"* **Compared.** {equal} attention tensors that eager models return equal the recorded weights to 1e-5;"
            f" {different} do not.",
            "* **Nothing passed over.** One level below, products of computed tensors with rows of weights that add up"
            f" to one are counted; in {overlooked} types there are more of them than recorded calls. Hyper-connections,"
            " which mix the residual streams of one position, are no attention and not counted.",
        ]
    )


def _answered(asked: Sequence[Result]) -> list[str]:
    """How many types each method answers for, and what keeps it from the others."""
    if not asked:
        return []
    rows = []
    for method in METHODS:
        refusals = collections.Counter(reason(r.answers[method]) for r in asked if r.answers[method])
        why = ", ".join(f"{count} {what}" for what, count in refusals.most_common())
        rows.append([method, str(len(asked) - refusals.total()), why])
    everything = sum(not any(r.answers.values()) for r in asked)
    lead = (
        f"`attribute()` of eight methods was asked for the main input of the {len(asked)} types with attention that"
        f" ran; {everything} have an answer of all eight. Convolutions and state spaces beside attention, skips over"
        " blocks, and cells and frames that overlap are rightly refused where calls are composed."
    )
    return ["## Which methods answer", lead, _table(["method", "types", "refused"], rows)]


def _grouped(title: str, results: Sequence[Result]) -> list[str]:
    groups: dict[str, list[str]] = collections.defaultdict(list)
    for r in results:
        groups[_reason(r)].append(r.model_type)
    rows = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    table = _table(["types", "reason", "which"], [[str(len(types)), why, ", ".join(types)] for why, types in rows])
    return [f"## {title}", table] if results else []


LONG = (
    "Long-document models (Longformer, LED, BigBird, BigBird-Pegasus, LongT5) run here as they are made, without a"
    " global token, or with full attention on so short a text. As they are used, all methods but ValueZeroing explain"
    " them, from one exact map over all positions; of LongT5's encoder `attention_maps` has the maps window by window,"
    " and DecompX explains it."
)
"""What the first part does not show."""

OPEN = (
    "Those that were found, one by one: refused by name, never wrongly read, but more than the method's definition asks"
    " for. Not counted are residuals that are gated or kept in several streams (Muse Spark, HY V4), and streams side by"
    " side (LiLT). Pictures that a model takes one behind the other, without an axis of examples (the vision towers of"
    " GLM, Pixtral, Qwen-VL), were given one at a time, as its error says."
)
"""What the table of :data:`STILL_REFUSED` holds."""

RIGHTLY = (
    "The other types for which calls are composed by no method, by what they are: their definitions have no answer in"
    " positions of the input."
)

LIBRARIES = "## Models of other libraries"
"""The heading of the page's second part, which :mod:`tests.coverage.libraries` writes."""


def libraries_part(page: str) -> str:
    """The second part of a page, with the line before it; "" where there is none."""
    _, mark, rest = page.partition(LIBRARIES)
    return f"\n{mark}{rest}" if mark else ""


def _reason(result: Result) -> str:
    """Without the names of modules, so that equal reasons are counted together."""
    if result.status == "refused" and "): " in result.reason:
        return result.reason.split("): ", 1)[1]
    return result.reason


def _row(r: Result) -> list[str]:
    found = [*r.notes, *([f"{r.other_softmaxes} other softmaxes"] if r.other_softmaxes else [])]
    notes = f" ({'; '.join(found)})" if found else ""
    status = r.status + (f": {_reason(r)}" if r.reason else "") + notes
    answered = f"{sum(not answer for answer in r.answers.values())}" if r.answers else ""
    answered += f" ({why})" if (why := missing(r.answers)) else ""
    if not r.calls:
        return [r.model_type, r.cls, r.inputs, "", "", "", "", "", answered, status]
    calls = ", ".join(f"{n} {kind}" for kind, n in r.kinds.items()) + (f", {r.gated} gated" if r.gated else "")
    zeroed = f"{r.proved}/{r.proved + r.opened + len(r.wrong)}"
    return [r.model_type, r.cls, r.inputs, calls, f"{r.worst:.1e}", zeroed, str(r.attentions[0] or ""), str(r.blocks),
            answered, status]  # fmt: skip


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(cell, line)) + " |" for line in lines)


def cell(text: str) -> str:
    """No line breaks, and nothing that Markdown would read as more than text."""
    text = " ".join(text.split())
    for mark in ("\\", "|", "*", "_", "<", "[", "`"):
        text = text.replace(mark, "\\" + mark)
    return text
