"""In which order the stores of a data flow learn of an operation, and which operations they are told of.

What was changed out of sight is lost first, for no rule may rest on it.  The operation's rule then says what is known
of its result; what reads mixed values, masks, bits and rows are told afterwards, as they ask what the rule has said.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from captum_norm.capture.aliases import follow_traces
from captum_norm.capture.call import InexactCaptureError
from captum_norm.capture.dataflow import RULES, Dataflow, Rule
from captum_norm.capture.mask_origins import COMPARISONS
from captum_norm.capture.masks import UnknownMaskError
from captum_norm.capture.reach import INPUT
from captum_norm.capture.replaced import replaced
from captum_norm.operations.formats import ROUNDINGS, what_is_strange
from captum_norm.operations.kinds import OperationKind, Property, kind_of, names_with
from captum_norm.operations.modes import OfKnownTensors
from captum_norm.operations.operation import Operation, base_name
from captum_norm.operations.storages import storage_of

OperationRule = Callable[[Operation], None]

# In place these give a tensor other axes, or another format.
_KEEP_NUMBERS = (OperationKind.MOVE, OperationKind.IDENTITY)
_LENDS, _GIVES_OUT = names_with(Property.LENDS), names_with(Property.GIVES_OUT)

# What makes something that is followed of tensors that are not.
_BEGIN = {
    "softmax", "log_softmax", "exp", "scaled_dot_product_attention", "flex_attention", "flash_attn_func",
    "flash_attn_varlen_func", *ROUNDINGS,
}  # fmt: skip


class Following:
    """Tells a data flow of each operation.

    Args:
        flow: what is known of the running model.
        calls_only: calls are read, and neither positions nor what reaches what are followed.
    """

    def __init__(self, flow: Dataflow, calls_only: bool = False) -> None:
        self._flow, self._calls_only = flow, calls_only

    def rule_for(self, name: str) -> OperationRule | None:
        """What to do with operations of this name."""
        opaque = self._flow.opaque
        if name in _LENDS | _GIVES_OUT and not self._calls_only:
            return opaque.lend if name in _LENDS else opaque.give_out
        rule = RULES.of(name)
        if rule is None:
            if name in COMPARISONS:
                return self._compare
            kind = kind_of(name)
            if kind is OperationKind.FILLED:
                return self._fill
            return opaque.see if kind is OperationKind.FRESH else None
        see = None if self._flow.stream is None else self._flow.stream.see
        if self._calls_only:
            return self._of_calls(rule, name in _BEGIN, see)
        return self._of_everything(rule, kind_of(name) is OperationKind.MOVE, see)

    def _of_everything(self, rule: Rule, moves: bool, see: OperationRule | None) -> OperationRule:
        """What to do with operations of this rule, where all is followed."""
        flow = self._flow
        opaque, readers, factors, reach, read_outs = flow.opaque, flow.readers, flow.factors, flow.reach, flow.rows

        def of_everything(op: Operation) -> None:
            try:
                is_view = moves and not op.overwritten and self._is_known_view(op)
                for changed in () if is_view else opaque.see_operands(op):
                    self._lose(changed)
                read, roots = readers.read_by(op) if flow.calls and not is_view else (), flow.projections.roots
                self._apply(rule, op)
                new, gates = readers.see(op, read, roots) if read else (0, 0)
                if read or factors.concern(op):
                    factors.see(op)
                if see is not None:
                    see(op)
                if not is_view:
                    opaque.see_results(op)
                self._tell_of_masks(op)
                born = flow.end() | new
                if born or not is_view:
                    reach.see(op, born, without=gates)
                if flow.chain is not None:
                    rows = replaced(flow, flow.chain, op) if flow.calls else None
                    flow.chain.see(op, bool(born), rows, flow.calls > 0 and _joins_features(flow, op))
                if flow.calls:
                    read_outs.see(op)
            except (AttributeError, NotImplementedError, RuntimeError, TypeError) as error:
                strange = what_is_strange(op)
                if strange:
                    raise InexactCaptureError(strange) from error
                raise

        return of_everything

    def _tell_of_masks(self, op: Operation) -> None:
        """What the result is known to be tells what may be a mask, or classes."""
        flow, out = self._flow, op.out
        trace = flow.traces[out] if isinstance(out, Tensor) else None
        flow.masks.see(op, trace is not None and trace.weights is not None)
        for into in op.overwritten:
            flow.masks.follow(into, flow.traces)
            flow.ledger.written.forget(into)
        if trace is None or trace.place is None:
            flow.ledger.written.see(op)

    def _of_calls(self, rule: Rule, begins: bool, see: OperationRule | None) -> OperationRule:
        """What to do with operations of this rule, where calls are read alone."""
        flow = self._flow

        def on_the_way(op: Operation) -> None:
            self._apply(rule, op)
            flow.end()

        of_known = OfKnownTensors(on_the_way, (flow.traces, flow.exponentials, flow.unrounded))
        if see is None:
            return on_the_way if begins else of_known

        def with_blocks(op: Operation) -> None:
            if begins or of_known.concerns(op.tensors):
                on_the_way(op)
            see(op)

        return with_blocks

    def _apply(self, rule: Rule, op: Operation) -> None:
        flow = self._flow
        flow.begin(op)
        before = [flow.traces[into] for into in op.overwritten] if op.overwritten else ()
        try:
            rule(flow, op)
        except UnknownMaskError as error:
            raise InexactCaptureError(f"{flow.module() or 'the model'} {error}") from None
        if before and op.name != "data_" and kind_of(op.name) not in _KEEP_NUMBERS:
            for into, trace in zip(op.overwritten, before, strict=True):
                follow_traces(into, trace, flow.traces)
                for facts in (flow.shallow, flow.exponentials, flow.unrounded):
                    facts.follow(into)

    def _lose(self, changed: Tensor) -> None:
        """Nothing is known any more of a tensor that was changed out of sight, nor of others in its memory."""
        flow = self._flow
        for facts in (flow.traces, flow.shallow, flow.exponentials, flow.unrounded, flow.rows.known):
            for tensor in (changed, *facts.beside(changed)):
                facts[tensor] = None

    def _is_known_view(self, op: Operation) -> bool:
        """Whether it made a view of a tensor that was seen before: what is known of the storage is known of it."""
        storages: Sequence[int] = op.storages
        if len(storages) != 1 or not storages[0] or not isinstance(op.out, Tensor):
            return False
        return storages[0] in self._flow.reach.storages and storage_of(op.out) == storages[0]

    def _fill(self, op: Operation) -> None:
        """Something is made of the numbers that stand behind the first operand, at no known place."""
        flow = self._flow
        flow.opaque.see(op)
        made_of = flow.reach.of_all(op.tensors[1:])
        for out in op.outputs if made_of else ():
            flow.reach.add(out, made_of if out.is_floating_point() else INPUT)

    def _compare(self, op: Operation) -> None:
        """A mask is made of sizes, or of ids."""
        flow = self._flow
        flow.masks.see(op)
        given = any(map(flow.is_given, op.tensors))
        for out in op.written:
            flow.tell(out) if given else flow.opaque.know(out)


def _joins_features(flow: Dataflow, op: Operation) -> bool:
    """Whether an operation puts features of each position side by side."""
    axis = op.argument(1, "dim", 0) if base_name(op.name) == "cat" else None
    trace = flow.traces[op.out] if isinstance(op.out, Tensor) else None
    if trace is None or trace.place is None or not isinstance(axis, int):
        return False
    return flow.places.holds_one(trace.place, (axis % op.out.ndim,))
