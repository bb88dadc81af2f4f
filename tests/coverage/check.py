"""One model type: built tiny, run plainly, run while recording, and proved.

check("bert")  ->  Result(status="exact", calls=2, kinds={"self": 2}, worst=3.9e-07, ...)
"""

from __future__ import annotations

import collections
import re
import traceback
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel

from captum_norm.capture import AttentionRecord, InexactCaptureError, recording
from captum_norm.forward.outputs import output_tensor
from captum_norm.proof import Prover, compare_attentions
from tests.coverage.inputs import BATCH, Inputs, candidates, sizes
from tests.coverage.methods import METHODS, asked
from tests.coverage.tiny import VARIANTS, tiny_config, tiny_model

MOST_PARAMETERS = 60_000_000  # a "tiny" model beyond this is not run
MOST_PROVED = 12  # calls of one model that the intervention tries


@dataclass
class Result:
    """What one type showed.

    Attributes:
        model_type, cls: transformers' name of the type and of its class.
        status: ``"exact"``, ``"refused"``, ``"none"`` (no softmax attention), ``"unbuilt"`` or ``"wrong"``.
        reason: why not exact.
        inputs: what went in.
        calls, kinds, gated: how many attention calls were recorded, of which kind, with a gate before W_O.
        worst: the largest certificate error.
        refusals: messages of the calls that were refused.
        same: outputs while recording are bit-equal to those without.
        proved, opened, wrong: calls by what the intervention says; ``notes`` say why open.
        attentions: returned by the eager model: how many equal a record, and how many do not.
        products: weighted means seen one level below; more of them than calls were overlooked.
        other_softmaxes: those over three axes or more that are no call: their output mixes no values by a product
            (gates of experts, deformable attention's weights for sampled pixels, pooling).
        eager_calls: calls recorded from the eager implementation, where it returns attentions.
        pieces: value products that the calls were made of; those of windows or of two softmaxes may be one call.
        blocks: how many of the calls have a block around them that was read.
        answers: what keeps each of eight methods from answering ("": it answered), where there are calls.
    """

    model_type: str
    cls: str = ""
    status: str = "unbuilt"
    reason: str = ""
    inputs: str = ""
    parameters: int = 0
    calls: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    gated: int = 0
    worst: float = 0.0
    refusals: list[str] = field(default_factory=list)
    unknown_keys: list[str] = field(default_factory=list)
    same: bool = True
    proved: int = 0
    opened: int = 0
    wrong: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    proof_error: float = 0.0
    attentions: list[int] = field(default_factory=lambda: [0, 0])
    products: int = 0
    other_softmaxes: int = 0
    eager_calls: int = 0
    pieces: int = 0
    blocks: int = 0
    answers: dict[str, str] = field(default_factory=dict)


def check(model_type: str) -> Result:
    """Build, run and prove one type.  Errors of transformers end as ``unbuilt``, ours as ``wrong``."""
    result = Result(model_type)
    built = build(model_type, result)
    if built is None:
        return result
    model, inputs = built
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        records = _record(model, inputs, result)
        _prove(model, inputs, records, result)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        result.wrong.append(f"{type(error).__name__}: {str(error)[:300]} ({where.name}, line {where.lineno})")
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
    if result.calls or result.refusals or result.wrong:
        result.answers = _answers(model, inputs)
    _judge(result)
    return result


def build(model_type: str, result: Result) -> tuple[PreTrainedModel, Inputs] | None:
    """The first variant that builds and the first inputs that run; the first error where none does."""
    for variant in VARIANTS:
        try:
            config = tiny_config(model_type, variant)
            with torch.device("meta"):
                parameters = sum(p.numel() for p in AutoModel.from_config(deepcopy(config)).parameters())
            if parameters > MOST_PARAMETERS:
                raise ValueError(f"its tiny configuration still has {parameters / 1e6:.0f} million parameters")
            model = tiny_model(config)
        except Exception as error:
            result.reason = result.reason or _short(error)
            if isinstance(error, ImportError):
                return None
            continue
        result.cls, result.parameters = type(model).__name__, parameters
        refused = ""
        for name, inputs in candidates(model):
            try:
                output = forward(model, inputs)
            except Exception as error:
                refused = refused or _short(error)
                continue
            if not any(bool(torch.isnan(t).any()) for t in tensors(output) if t.is_floating_point()):
                result.inputs, result.reason = name, ""
                return model, inputs
            refused = refused or "its outputs are not a number"
        result.reason = refused or "no inputs are known for it"
    return None


def forward(model: PreTrainedModel, inputs: Inputs, **more: Any) -> Any:
    """One forward, with the same random numbers each time (some models draw them in evaluation too)."""
    torch.manual_seed(0)
    with torch.no_grad():
        return model(**{name: deepcopy(value) for name, value in inputs.items()}, **more)


def tensors(output: Any) -> Iterator[Tensor]:
    """Every tensor in a model's output, however nested."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict):
        for value in output.values():
            yield from tensors(value)
    elif isinstance(output, (list, tuple)):
        for value in output:
            yield from tensors(value)


def _record(model: PreTrainedModel, inputs: Inputs, result: Result) -> list[AttentionRecord]:
    plain = list(tensors(forward(model, inputs)))
    refused: list[InexactCaptureError] = []
    with recording(model=model, on_inexact=refused.append, blocks=True) as records:
        seen = list(tensors(forward(model, inputs)))
    result.same = len(plain) == len(seen) and all(map(_equal, plain, seen))
    result.calls, result.gated = len(records), sum(r.gate is not None for r in records)
    result.pieces = sum(record.bit.bit_count() for record in records)
    result.blocks = sum(record.block is not None for record in records)
    result.kinds = dict(collections.Counter(r.call.kind for r in records))
    result.worst = max((float(r.certificate) for r in records), default=0.0)
    result.refusals = [str(error) for error in refused]
    result.unknown_keys = sorted({r.unknown_keys for r in records if r.keys is None})
    return list(records)


class Explained(nn.Module):
    """A model as a function of its main input alone, (batch, ...), with the tensor that is explained.

    Pictures that a model takes one behind the other in one row have no axis of examples: the first of them is given,
    with one in front.

    Attributes:
        given: the main input.
    """

    def __init__(self, model: PreTrainedModel, inputs: Inputs) -> None:
        super().__init__()
        main = model.main_input_name
        main = main if isinstance(main, list) else [main]
        names = (*main, *(n for n in inputs if isinstance(inputs[n], Tensor) and "mask" not in n))
        self.model, self.name = model, next(name for name in names if isinstance(inputs.get(name), Tensor))
        self.given, self.others = inputs[self.name], {n: value for n, value in inputs.items() if n != self.name}
        self.is_packed = any(n in PACKED and len(value) < len(self.given) for n, value in self.others.items())
        if self.is_packed or model.config.model_type in IN_ONE_ROW:
            count = len(self.given) // BATCH
            self.others = {n: _first(value, count) for n, value in self.others.items()}
            self.given = self.given[None, :count] if self.is_packed else self.given[:count]

    def forward(self, given: Tensor) -> Tensor:
        torch.manual_seed(0)
        output = self.model(**{self.name: given[0] if self.is_packed else given}, **self.others)
        if EXPLAINED.get(self.model.config.model_type) in output:
            return output[EXPLAINED[self.model.config.model_type]]
        found = output_tensor(output, axes=1)
        found = next(t for t in tensors(output) if t.is_floating_point()) if found is None else found
        return found[None] if self.is_packed and len(found) > 1 else found


PACKED = ("grid_thw", "spatial_shapes", "target_sizes")
"""Arguments with a row for each picture, where the pictures' patches lie one behind the other."""

IN_ONE_ROW = ("pixtral",)
"""Types that put pictures into one row themselves."""

EXPLAINED = {"flava": "text_embeddings", "pe_audio": "text_audio_embeds", "tipsv2": "text_embeds"}
"""What is explained where the first output is not made of the main input, or counts other examples than it does."""


def _first(value: Any, count: int) -> Any:
    """What is given of the first picture, of several of so many patches each."""
    if not isinstance(value, Tensor):
        return value
    return value[: count if len(value) == BATCH * count else 1]


def _answers(model: PreTrainedModel, inputs: Inputs) -> dict[str, str]:
    explained = Explained(model, inputs)
    with torch.no_grad():
        target = (0,) * (explained(explained.given).ndim - 1)
    chosen = target[0] if len(target) == 1 else target
    return {method: asked(method, explained, explained.given, chosen) for method in METHODS}


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(
        a.nan_to_num() if a.is_floating_point() else a, b.nan_to_num() if b.is_floating_point() else b
    )


def _prove(model: PreTrainedModel, inputs: Inputs, records: list[AttentionRecord], result: Result) -> None:
    prover = Prover(model, lambda: forward(model, inputs), streams=sizes(model.config, "hc_mult", default=0))
    result.products = prover.weighted_means()
    result.other_softmaxes = max(0, prover.softmaxes() - result.calls - len(result.refusals))
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(records), generator=generator)[:MOST_PROVED].sort().values.tolist()
    findings = [prover.prove(records[i], generator) for i in chosen]
    result.proved = sum(f.status == "proved" for f in findings)
    result.opened = sum(f.status == "open" for f in findings)
    result.wrong += [f"{f.name}: off by {f.error:.1e}" for f in findings if f.status == "wrong"]
    result.notes = sorted({f.note for f in findings if f.note})
    result.proof_error = max((f.error for f in findings if f.error is not None), default=0.0)
    _compare(model, inputs, result)


def _compare(model: PreTrainedModel, inputs: Inputs, result: Result) -> None:
    """The weights that the eager implementation of the same model returns, with those recorded in the same forward."""
    try:
        eager = AutoModel.from_config(deepcopy(model.config), attn_implementation="eager").float().eval()
        eager.load_state_dict(model.state_dict())
        forward(eager, inputs, output_attentions=True)
    except Exception:
        return  # transformers has no eager implementation of it, or returns no attentions
    refused: list[InexactCaptureError] = []
    with recording(model=eager, on_inexact=refused.append) as records:
        output = forward(eager, inputs, output_attentions=True)
    result.eager_calls = len(records)
    returned = list(_attentions(output))
    equal, different = compare_attentions(returned, records)
    if different:
        sorted_records = [record.but(weights=_sorted(record.weights)) for record in records]
        found = compare_attentions([_sorted(tensor) for tensor in returned], sorted_records)
        if found[1] < different:
            equal, different = found
            result.notes.append("it returns attentions in the order in which it takes queries")
    result.attentions = [equal, max(0, different - len(refused))]  # the refused calls return attentions too


def _sorted(weights: Tensor) -> Tensor:
    """Weights (..., query, key) with the rows of each map in the order of their first key's weights."""
    return weights.take_along_dim(weights[..., :1].argsort(-2), -2)


def _attentions(output: Any) -> Iterator[Tensor]:
    if not isinstance(output, dict):
        return
    for name, value in output.items():
        if "attention" in name and "mask" not in name:
            yield from (t for t in tensors(value) if t.ndim >= 3 and t.is_floating_point())
        else:
            yield from _attentions(value)


def _judge(result: Result) -> None:
    if not result.same:
        result.status, result.reason = "wrong", "outputs differ while recording"
    elif result.wrong:
        result.status, result.reason = "wrong", result.wrong[0]
    elif result.attentions[1]:
        result.status, result.reason = "wrong", f"{result.attentions[1]} returned attentions equal no record"
    elif result.refusals:
        result.status, result.reason = "refused", result.refusals[0]
    elif result.calls:
        result.status = "exact"
    else:
        result.status = "none"
    if result.status in ("exact", "none") and result.products > result.pieces:
        result.status = "overlooked"
        result.reason = f"{result.products} weighted means were computed, {result.pieces} recorded"


def _short(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines)
    if isinstance(error, ImportError):
        text = next((line for line in lines if "requires" in line), text).split(" but it was not found")[0]
    text = re.sub(r"/\S*/site-packages/", "", text)  # where this machine keeps its libraries is nobody's concern
    return f"{type(error).__name__}: {text[:240]}"
