"""``captum-norm certify``: what a model's output rests on, and how exactly it is read."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, Any

from captum_norm.cli import table as draw
from captum_norm.cli.arguments import (
    add_model_arguments,
    add_output_arguments,
    check_outputs,
    from_stdin,
    plain_text,
    say,
    write_json,
)

if TYPE_CHECKING:
    from captum_norm.capture import Softmax
    from captum_norm.maps import Certified, CheckedCall

SUMMARY = "what a model's output rests on: every attention call, and how exactly it is read"
EXAMPLE = "captum-norm certify --model ./my-model"
DESCRIPTION = """\
Runs a model once and lists its attention calls in order: the module, its kind (self, causal or cross), its heads, the
parameter used as W_O, and the error of its certificate: how far what was read is from what the model computed, as a
part of the attention's output. Below it says what became of each softmax, what mixes positions beside attention,
which rows the output was read from, which calls it does not rest on, what could not be looked into, and how many tokens
are real. The inputs are made from the model's config (random ids, pixels or sound), or from --text. --prove repeats it
by other means: values erased in the running model, tokens changed that the output is said not to rest on, weights
compared with those that the model returns.

exit code: 0 if all that the output rests on is read exactly, 1 if not or if it is proved wrong, 2 for a mistake in what
was asked."""


_HEADERS = ["", "module", "kind", "call", "heads", "W_O", "error"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this command."""
    parser.add_argument(
        "--text", metavar="TEXT", type=plain_text, help="a text to run on, or - for standard input (default: made)"
    )
    parser.add_argument(
        "--prove", action="store_true",
        help="prove it by other means, too (some forward passes for each call)",
    )  # fmt: skip
    add_model_arguments(parser, default="the embedded sentiment model")
    add_output_arguments(parser)


def run(asked: argparse.Namespace) -> int:
    """Check, load, run, print and save; the exit code."""
    check_outputs(asked.json)
    if asked.text == "-":
        asked.text = from_stdin().strip()
    if asked.text is not None and not asked.text.strip():
        raise ValueError("--text is empty: leave it out, and inputs are made from the model's config.")
    from captum_norm.cli import loading
    from captum_norm.cli.proof import proof_as_dict, proof_as_text
    from captum_norm.cli.synthetic import synthetic_inputs
    from captum_norm.maps import certified
    from captum_norm.proof import prove

    with loading.quiet():
        loaded = loading.load(asked, tokenizer=asked.text is not None)
        if asked.text is None:
            inputs = synthetic_inputs(loaded.model)
        else:
            encoding = loaded.encode(asked.text)
            loading.check_length(loaded, encoding["input_ids"])
            inputs = loaded.forward_inputs(encoding)
        found = certified(loaded.model, inputs)
        say(_as_text(f"{loaded.name} ({type(loaded.model).__name__})", found), asked.json)
        proof = prove(loaded.model, inputs, show_progress=sys.stderr.isatty()) if asked.prove else None
        if proof is not None:
            say("\n" + proof_as_text(proof), asked.json)
        if asked.json:
            shown = {"model": loaded.name, **_whole_as_dict(found)}
            write_json(asked.json, shown if proof is None else {**shown, "proof": proof_as_dict(proof)})
    return int(not found.is_whole or (proof is not None and proof.verdict == "wrong"))


def _as_text(title: str, found: Certified) -> str:
    calls = found.calls
    refused = [(i, call) for i, call in enumerate(calls) if call.refusal]
    head = f"{title}: {len(calls)} attention calls, " + (f"{len(refused)} refused" if refused else "all read exactly")
    rows = [_row(i, call) for i, call in enumerate(calls)]
    rows = _narrowed(rows) if sys.stdout.isatty() or "COLUMNS" in os.environ else rows
    parts = [draw.wrap(head), draw.table(_HEADERS, rows, left=(1, 2, 5))]
    errors = [call.certificate for call in calls if call.certificate is not None]
    if errors:
        worst = max(errors, key=float)
        parts.append(f"worst error {float(worst):.1e}, allowed {worst.tolerance:.0e}")
    parts += [draw.wrap(f"{i} refused: {call.refusal}") for i, call in refused]
    unknown = [(i, call) for i, call in enumerate(calls) if not call.refusal and not call.keys_known]
    parts += [draw.wrap(f"{i}: maps only, no scores of inputs: {call.unknown_keys}") for i, call in unknown]
    parts.append("\n".join(draw.wrap(line) for line in _rests_on(found)))
    return "\n\n".join(parts)


def _rests_on(found: Certified) -> list[str]:
    """What became of each softmax, and what else the output rests on, a line for each."""
    counts = dict.fromkeys(_FATES.values(), 0)
    for softmax in found.softmaxes:
        counts[_fate(softmax)] += 1
    lines = [f"softmaxes: {', '.join(f'{n} {name}' for name, n in counts.items() if n) or 'none'}"]
    lines += [f"  {_fate(one)}: {one}" for one in found.softmaxes if one.fate != "call"]
    unused = [str(i) for i, call in enumerate(found.calls) if not call.reaches]
    lines.append(f"output: {found.rows}" + (f"; it does not rest on calls {', '.join(unused)}" if unused else ""))
    mixers = "; ".join(map(str, found.mixers))
    lines.append(f"positions are mixed by attention{f', and by {mixers}' if mixers else ' alone'}")
    lines += [f"cannot be looked into: {part}" for part in found.opaque]
    lines += [f"real tokens: {real} of {count} in {name}" for name, (real, count) in found.real.items()]
    return lines


_FATES = {
    "call": "read as attention",
    "refused": "refused",
    "no attention": "over streams of one position",
    "features": "over features, no attention",
    "positions": "lost: they never met values",
    "unknown": "that met no values, over an axis nobody knows",
}


def _fate(softmax: Softmax) -> str:
    return _FATES[softmax.fate or softmax.along]


def _row(i: int, found: CheckedCall) -> list[str]:
    call = found.call
    error = "refused" if found.certificate is None else f"{float(found.certificate):.1e}"
    return [str(i), call.name or "·", call.kind, str(call.call), str(call.heads or "·"), call.projection or "·", error]


def _narrowed(rows: list[list[str]]) -> list[list[str]]:
    """Where the screen is narrower than the names: what W_O's shares with its module goes first, then beginnings."""

    def over() -> int:
        widths = [max(map(len, (row[c] for row in [_HEADERS, *rows]))) for c in range(len(_HEADERS))]
        return sum(widths) + 2 * (len(widths) - 1) - draw.screen_width()

    if over() > 0:
        rows = [[*row[:5], _beyond(row[1], row[5]), row[6]] for row in rows]
    for column in (1, 5):
        excess = over()
        if excess > 0:
            room = max(16, max(len(row[column]) for row in rows) - excess)
            rows = [[draw.cut(c, room, keep_end=True) if i == column else c for i, c in enumerate(row)] for row in rows]
    return rows


def _beyond(module: str, parameter: str) -> str:
    """``…output.dense.weight`` for the parameter ``layer.0.output.dense.weight`` beside the module ``layer.0.self``."""
    shared = 0
    for ours, theirs in zip(module.split("."), parameter.split("."), strict=False):
        if ours != theirs:
            break
        shared += len(theirs) + 1
    return f"…{parameter[shared:]}" if shared else parameter


def _as_dict(found: CheckedCall) -> dict[str, Any]:
    call, certificate = found.call, found.certificate
    return {
        "name": call.name,
        "kind": call.kind,
        "call": call.call,
        "heads": call.heads,
        "W_O": call.projection,
        "error": None if certificate is None else certificate.error,
        "tolerance": None if certificate is None else certificate.tolerance,
        "refusal": found.refusal or None,
        "keys_known": found.keys_known,
        "unknown_keys": found.unknown_keys or None,
    }


def _whole_as_dict(found: Certified) -> dict[str, Any]:
    unused = [i for i, call in enumerate(found.calls) if not call.reaches]
    return {
        "whole": found.is_whole,
        "calls": [_as_dict(call) for call in found.calls],
        "unused": unused,
        "rows": found.rows,
        "mixers": [vars(mixer) for mixer in found.mixers],
        "softmaxes": [
            {"module": s.module, "shape": s.shape, "axis": s.axis, "along": s.along, "fate": s.fate or None,
             "lost": s in found.lost}
            for s in found.softmaxes
        ],
        "opaque": [{"operation": p.operation, "module": p.module, "why": p.why} for p in found.opaque],
        "real_tokens": {name: {"real": real, "all": count} for name, (real, count) in found.real.items()},
    }  # fmt: skip
