"""Following the residual stream: what is added to what attention gave out, and the norms around it.

    part = inner(y)                         y what W_O wrote, inner a norm, a scale or nothing
    sum  = part + residual                  the residual is what the queries were made of
    norm = N(sum)                           post-LN: the stream goes on as the norm of the sum; else as the sum itself
    sum2 = stream + feed_forward(stream)    and a second norm, if the stream goes on behind it

Whether the stream goes on as a state or as its norm is told by what the next part is added to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from torch import Tensor
from torch.nn import Parameter

from captum_norm.capture.blocks.feed_forward import FeedForwardParts, PartState
from captum_norm.capture.blocks.forms import FORM_RULES, Form, Kept, State, is_normalisation
from captum_norm.capture.blocks.lineage import Node, StreamStep
from captum_norm.capture.record import FeedForward
from captum_norm.capture.traces import Mixture
from captum_norm.operations.facts import Facts
from captum_norm.operations.formats import holds_numbers
from captum_norm.operations.kinds import OperationKind, Property, kind_of, names_of, names_with
from captum_norm.operations.operation import Operation, base_name
from captum_norm.operations.storages import is_same_view, storage_of

Added = tuple[Form, Kept]
"""A tensor that was added, and the form that it is of a state."""


@dataclass(eq=False)
class Stage:
    """One state of the stream, and how the stream goes on from it.

    Attributes:
        state: the sum.
        origin: how one of its operands came from the state before it, to know which row is which.
        going_on: the form of the state that the next part was added to, and that tensor; None while nobody knows.
        normed: the first normalisation of the state that was seen, and that tensor.
        scaled: likewise what was scaled, or given a bias, and not normalised.
        part: what a feed-forward part added to make the state, as a form of what its second projection wrote.
        lost: the operation by which the stream goes on as something that is no form of the state.
        unclear: what was made of the state, or of its norm, that is no form of it; it may be how the stream goes on.
    """

    state: State
    origin: Form
    going_on: Added | None = None
    normed: Added | None = None
    scaled: Added | None = None
    part: Added | None = None
    lost: str = ""
    unclear: str = ""


@dataclass(eq=False)
class OpenBlock:
    """What is known of the block around one attention call, or around several that W_O writes at once (packed images).

    Attributes:
        mixed: the value product in the lineage, of the last of them.
        part: the form, of what W_O wrote, that was added to the residual, and the tensor.
        residual: what it was added to; ``residual_node`` is its place in the lineage.
        stages: the sum, and the sums behind it up to the next attention call.
        feed_forward: where the feed-forward part stands.
        pre_norm: the queries, keys or values are made of a norm of the residual.
        in_pieces: some of its rows are added to the residual apart from others.
        is_moved: the residual lies at other positions than what W_O wrote, as far as is known.
        beside: what was added to attention before the residual was.
        problem: why attention and residual are not one sum; "" where they are.
    """

    mixed: Node
    part: Added | None = None
    residual: Kept | None = None
    residual_node: Node | None = None
    stages: list[Stage] = field(default_factory=list)
    feed_forward: FeedForward = ""
    pre_norm: bool = False
    in_pieces: bool = False
    is_moved: bool = False
    beside: list[Node] = field(default_factory=list)
    problem: str = ""


class ResidualStream:
    """The residual stream of one running model, followed beside its attention.

    Attributes:
        agree: whether two tensors of one shape lie at the same positions, as far as is known.
        blocks: the block around each call under way.

    ``mixed``, ``projected`` are told by :class:`~captum_norm.capture.dataflow.Dataflow`; ``see`` is handed every
    operation after it.
    """

    def __init__(self) -> None:
        self.agree: Callable[[Tensor, Tensor], bool] = lambda first, second: True
        self._nodes: Facts[Node] = Facts()
        self._forms: Facts[Form] = Facts()
        self._blocks: dict[State, OpenBlock] = {}
        self._stages: dict[State, tuple[OpenBlock, Stage]] = {}
        self._parts = FeedForwardParts(lambda tensor: self._forms[tensor])
        self._count = 0
        self._mixture: Mixture | None = None
        self._projected: tuple[list[Mixture], Tensor] | None = None
        self._stage_node: Node | None = None
        self.blocks: dict[Mixture, OpenBlock] = {}

    # ---- told by the data flow

    def mixed(self, mixture: Mixture) -> None:
        """A value product has just run."""
        self._mixture = mixture

    def projected(self, mixture: Mixture, out: Tensor) -> None:
        """An output projection, or a better one, has just been written."""
        together = self._projected[0] if self._projected is not None and self._projected[1] is out else []
        self._projected = [*together, mixture], out

    def are_one(self, first: Mixture, second: Mixture) -> bool:
        """Whether two calls have one block, or are the same."""
        block = self.blocks.get(first)
        return first is second or (block is not None and block is self.blocks.get(second))

    def forget(self, mixture: Mixture) -> OpenBlock | None:
        """Hand over what is known of a call's block and drop it."""
        block = self.blocks.pop(mixture, None)
        if block is not None and block not in self.blocks.values():
            self._blocks = {state: other for state, other in self._blocks.items() if other is not block}
            self._stages = {state: stage for state, stage in self._stages.items() if stage[0] is not block}
        return block

    def clear(self) -> None:
        """Drop everything."""
        for known in (self._nodes, self._forms, self._blocks, self._stages, self._parts, self.blocks):
            known.clear()

    # ---- every operation

    def see(self, op: Operation) -> None:
        """Take in one operation."""
        if op.name == "data_":  # from here on the tensor is another one
            into, value = op.args
            self._nodes[into], self._forms[into] = self._node(value), self._forms[value]
            return
        name, made_of = base_name(op.name), op.tensors[:1] if base_name(op.name) in _LIKE else op.tensors
        parents = tuple(node for tensor in made_of if (node := self._node(tensor)) is not None)
        outs = list({id(out): out for out in op.written}.values()) if op.overwritten else op.outputs
        forms = [(tensor, form) for tensor in op.tensors if (form := self._forms[tensor]) is not None]
        form = self._form(op, name, forms)
        normalised = self._normalised(op) if form is None else None
        thin = len(parents) == 1 and (name in _THIN or (name in ("mul", "div") and self._is_fixed(op)))
        for out in outs:
            if not holds_numbers(out) or (not op.overwritten and any(out is tensor for tensor in op.tensors)):
                continue  # what gives out what it was given, such as conj, changes nothing
            node = self._stage_node or self._new_node(parents, thin, _step(op), op.name)
            node.normalised = form.state.node.root() if form is not None and form.normalises else normalised
            node.form_of = None if form is None else form.state.node
            self._nodes[out] = node
            self._forms[out] = form if out is op.out else None
        for into in op.overwritten:
            self._follow(into)
        self._stage_node = None
        written = self._parts.see(op, self._stages.__contains__)
        if written is not None and self._forms[op.out] is None and (made := self._nodes[op.out]) is not None:
            self._forms[op.out] = Form(PartState(op.out.detach(), made, *written))
        self._begin(op)

    def _follow(self, into: Tensor) -> None:
        """What is known of the other tensors in the memory of one that was overwritten."""
        written = self._nodes[into]
        for alias in self._nodes.beside(into):
            if is_same_view(alias, into):
                self._nodes[alias], self._forms[alias] = written, self._forms[into]
            else:
                both = (node for node in (written, self._nodes[alias]) if node is not None)
                self._nodes[alias] = self._new_node(tuple(both))
        self._forms.follow(into)
        self._parts.follow(into)

    def _node(self, tensor: Tensor) -> Node | None:
        """The tensor's place in the lineage; what was there before the model ran has its own."""
        node = self._nodes[tensor]
        if node is None and holds_numbers(tensor) and not isinstance(tensor, Parameter):
            node = self._new_node()
            self._nodes[tensor] = node
        return node

    def _is_fixed(self, op: Operation) -> bool:
        """One factor is a number, or a parameter of the model; the deviation of a single row is none."""
        for value in op.args[:2]:
            if not isinstance(value, Tensor) or isinstance(value, Parameter):
                return True
            node = self._nodes[value]
            if value.numel() == 1 and (value.ndim == 0 or node is None or not node.parents):
                return True
        return False

    def _new_node(
        self, parents: tuple[Node, ...] = (), thin: bool = False, step: StreamStep = "same", operation: str = ""
    ) -> Node:
        self._count += 1
        return Node(self._count, parents, thin, step=step, operation=operation)

    def _begin(self, op: Operation) -> None:
        """What the data flow told of this operation."""
        mixture, self._mixture = self._mixture, None
        if mixture is not None and (node := self._nodes[op.out]) is not None:
            self.blocks[mixture] = OpenBlock(node)
        projected, self._projected = self._projected, None
        mixtures, out = ([], None) if projected is None else projected
        mixtures = [mixture for mixture in mixtures if mixture in self.blocks]
        if out is None or not mixtures:
            return
        if isinstance(op.out, Tensor) and _is_view_of_all(out, op.out):
            out = op.out
        if self._nodes[out] is None:  # written by a step of our own
            parent = self._nodes[op.out] if isinstance(op.out, Tensor) else None
            self._nodes[out] = self._new_node(() if parent is None else (parent,))
        state = State(out.detach(), self._nodes[out] or self._new_node())
        block = self._blocks[state] = self.blocks[mixtures[-1]]
        self.blocks |= dict.fromkeys(mixtures, block)
        self._forms[out] = Form(state)

    def _form(self, op: Operation, name: str, forms: list[tuple[Tensor, Form]]) -> Form | None:
        if not forms or not isinstance(op.out, Tensor) or self._projected is not None:
            return None
        if name == "add" and len(op.args) > 1 and all(isinstance(operand, Tensor) for operand in op.args[:2]):
            total = self._add(op)
            if total is not None:
                return total
        if kind_of(op.name) is OperationKind.SUM or name in _SUM_TOO:
            self._note_sum(op)
        if name in ("add", "sub", "mul", "div"):
            operand = next((t for t in op.args[:2] if isinstance(t, Tensor) and t.shape == op.out.shape), None)
            form = None if operand is None else self._forms[operand]
        else:
            operand, form = forms[0] if op.tensors and forms[0][0] is op.tensors[0] else (None, None)
        if form is None or operand is None:
            return None
        rule = FORM_RULES.of(name)
        after = None if rule is None else rule(op, form)
        if form.state in self._stages:
            self._goes_on(self._stages[form.state][1], op, operand, after)
        return after

    def _goes_on(self, stage: Stage, op: Operation, operand: Tensor, form: Form | None) -> None:
        """Take note of what an operation made of a stage's state: the stream may go on as that."""
        if form is None and self._may_be_stream(stage, op, operand):
            stage.unclear = op.name
        if form is None or form.is_plain:
            return
        before = stage.normed if form.normalises else stage.scaled
        is_next = before is not None and _is_view_of_all(operand, before[1].tensor)  # its weight, its bias
        if is_next and base_name(op.name) in _MOVES:
            is_next = operand.shape != form.state.tensor.shape == op.out.shape  # back to the layout of the stream
        if before is None or is_next:
            setattr(stage, "normed" if form.normalises else "scaled", (form, Kept(op.out)))
            stage.unclear = ""  # it was a part of the norm

    def _may_be_stream(self, stage: Stage, op: Operation, operand: Tensor) -> bool:
        """Whether what was made of a state, or of its norm, may be the stream: all its rows, and no sum of states."""
        if kind_of(op.name) in _LEAVE_THE_STREAM or not op.out.is_floating_point() or op.overwritten:
            return False
        if stage.normed is not None and not _is_view_of_all(operand, stage.normed[1].tensor):
            return False
        others = [one for one in op.tensors if one.shape == op.out.shape and self._forms[one] is None]
        return op.out.shape == stage.state.tensor.shape and not (base_name(op.name) in ("add", "sub") and others)

    def _normalised(self, op: Operation) -> Node | None:
        """What this operation normalises, if it is no form of a known state."""
        x = is_normalisation(op, self._was_made_of)
        node = None if x is None else self._nodes[x]
        if node is not None and base_name(node.operation) == "sub" and len(node.parents) == 2:
            whole, mean = node.parents
            node = whole if mean.comes_from(whole) else node
        return None if node is None else node.root()

    def _was_made_of(self, x: Tensor, other: Tensor) -> bool:
        made, of = self._nodes[other], self._nodes[x]
        return made is not None and of is not None and made.comes_from(of)

    # ---- sums of states

    def _add(self, op: Operation) -> Form | None:
        """Two tensors are added: attention and residual, a feed-forward part and the stream, or neither."""
        first, second = op.args[:2]
        if op.kwargs.get("alpha", 1) != 1 or not _same_rows(first, second, op.out):
            return None
        for part, other in ((first, second), (second, first)):
            form, node = self._forms[part], self._nodes[other]
            if form is None or node is None:
                continue
            block = self._blocks.get(form.state)
            if block is None:
                continue
            if not block.stages:
                return self._to_attention(op, block, form, part, other, node)
            if form.steps and block.residual_node is not None and node.comes_from(block.residual_node.root()):
                block.in_pieces = True
            else:
                block.problem = block.problem or "what W_O wrote is added to more than one state"
        for stream, part in ((first, second), (second, first)):
            form, node = self._forms[stream], self._nodes[part]
            added = self._forms[part]
            is_stream = added is not None and not isinstance(added.state, PartState)
            if form is None or node is None or form.state not in self._stages:
                continue
            block, _ = self._stages[form.state]
            block.problem = block.problem or self._why_no_part(block, form, part, node)
            if is_stream or block.problem:
                continue
            if any(node.comes_from(stage.state.node) for stage in block.stages):
                return self._behind(op, form, stream, part, "behind")
            if block.residual_node is not None and node.comes_from(block.residual_node):
                return self._behind(op, form, stream, part, "beside")
        return None

    def _why_no_part(self, block: OpenBlock, stream: Form, part: Tensor, node: Node) -> str:
        """Why what is added to a state of a block is no feed-forward part; "" where it may be one, or leads past it."""
        added = self._forms[part]
        of_stage = added is not None and added.state is not stream.state and added.state in self._stages
        if added is not None and of_stage and self._stages[added.state][0] is block:
            return "two states of the stream behind attention are added up"
        return _is_no_part(block, stream, node)

    def _note_sum(self, op: Operation) -> None:
        """A sum that is written otherwise than as one of two tensors, of which one is a state of a block."""
        for stream in op.tensors:
            form = self._forms[stream]
            if form is None or form.state not in self._stages:
                continue
            block, _ = self._stages[form.state]
            for part in op.tensors:
                node = None if part is stream or part.shape != stream.shape else self._nodes[part]
                if node is None:
                    continue
                block.problem = block.problem or self._why_no_part(block, form, part, node)
                added = self._forms[part]
                is_made = added is None or isinstance(added.state, PartState)  # and no row, or norm, of the state
                if is_made and any(node.comes_from(stage.state.node) for stage in block.stages):
                    block.feed_forward = "several"  # a part that is not seen as one of them

    def _to_attention(
        self, op: Operation, block: OpenBlock, form: Form, part: Tensor, other: Tensor, node: Node
    ) -> Form | None:
        if not block.mixed.comes_from(node):
            # Neither made before attention nor of it: a feed-forward part beside it, the residual is yet to come.
            if node.comes_from(form.state.node):
                block.problem = block.problem or "what W_O wrote is added to something that was made of it"
                return None
            if form.beside is not None:
                return None
            block.feed_forward = "beside"
            block.beside.append(node)
            return replace(form, beside=_operand(op, part, other))
        residual = _operand(op, other, part)
        block.is_moved = not self.agree(part, other)
        known = self._forms[other]
        if known is not None and known.state in self._stages:
            before, stage = self._stages[known.state]
            stage.going_on = known, Kept(residual)
            before.feed_forward = before.feed_forward or "later"
        elif known is None:
            for _, stage in self._stages.values():
                stage.lost = stage.lost or (node.lost(stage.state.node) if stage.going_on is None else "")
        if any(one.continues(node) for one in block.beside):
            block.problem = block.problem or _RESIDUAL_TWICE
        block.part = form, Kept(_operand(op, part, other) if form.beside is None else form.beside)
        block.residual, block.residual_node = Kept(residual), node
        block.pre_norm = _has_norm_between(block.mixed, node)
        return self._stage(op, block, form)

    def _behind(self, op: Operation, form: Form, stream: Tensor, part: Tensor, where: FeedForward) -> Form:
        """A part made of the stream is added to it."""
        block, stage = self._stages[form.state]
        stage.going_on = form, Kept(_operand(op, stream, part))
        block.feed_forward = where
        added = self._forms[part]
        behind = None if added is None else (added, Kept(_operand(op, part, stream)))
        return self._stage(op, block, form, behind)

    def _stage(self, op: Operation, block: OpenBlock, origin: Form, part: Added | None = None) -> Form:
        self._stage_node = self._new_node()  # nobody asks what is before it
        # A copy: many models go on adding to the stream in place.
        state = State(op.out.detach().clone(), self._stage_node)
        stage = Stage(state, origin, part=part)
        block.stages.append(stage)
        self._stages[state] = block, stage
        return Form(state)


_RESIDUAL_TWICE = "the residual is added to the stream more than once"


def _is_no_part(block: OpenBlock, stream: Form, added: Node) -> str:
    """Why what is added behind attention is no feed-forward part; "" where it may be one, or leads past the block."""
    if added.comes_from(block.mixed):
        return "something that was made of what attention gave out alone is added to the stream as well"
    is_sum = stream.state is block.stages[0].state
    if is_sum and block.residual_node is not None and added.continues(block.residual_node):
        return _RESIDUAL_TWICE
    return ""


_LEAVE_THE_STREAM = (
    OperationKind.MAP, OperationKind.PRODUCT, OperationKind.ATTENTION, OperationKind.EMBEDDING, OperationKind.REDUCTION,
    OperationKind.COMBINATION,
)  # fmt: skip
_MOVES = names_of(OperationKind.MOVE)
_SUM_TOO = frozenset(("addcmul", "addcdiv", "lerp", "baddbmm", "addmm", "addbmm", "stack"))
_LIKE = names_with(Property.LIKE)
_THIN = names_of(OperationKind.DROPOUT, OperationKind.IDENTITY, OperationKind.MOVE)
_KEEP_ENTRIES = (
    OperationKind.MOVE, OperationKind.JOIN, OperationKind.IDENTITY, OperationKind.DROPOUT, OperationKind.WRITE,
)  # fmt: skip


def _step(op: Operation) -> StreamStep:
    """What an operation does to the residual stream."""
    kind, name = kind_of(op.name), base_name(op.name)
    if kind in _LEAVE_THE_STREAM:
        return "other"
    if name == "add" and len(op.tensors) > 1 and op.tensors[0].shape == op.tensors[1].shape:
        return "sum"
    if kind is OperationKind.JOIN and isinstance(op.out, Tensor) and op.tensors:  # features side by side are others
        return "same" if op.tensors[0].shape[-1:] == op.out.shape[-1:] else "changed"
    if kind is OperationKind.CHOICE:  # whole rows are left out
        mask = op.argument(1, "mask") if name == "masked_fill" else op.args[0]
        return "same" if isinstance(mask, Tensor) and mask.ndim and mask.shape[-1] == 1 else "changed"
    return "same" if kind in _KEEP_ENTRIES else "changed"


def _operand(op: Operation, operand: Tensor, other: Tensor) -> Tensor:
    """An operand of a sum of two, as it was before the sum took its place if it did."""
    return (op.out - other if op.out is operand else operand).detach()


def _is_view_of_all(view: Tensor, of: Tensor) -> bool:
    """The same numbers in the same order."""
    storage = storage_of(view)
    return storage > 0 and storage == storage_of(of) and is_same_view(view, of)


def _same_rows(first: Tensor, second: Tensor, out: Tensor) -> bool:
    return first.shape == out.shape and second.shape == out.shape


def _has_norm_between(mixed: Node, residual: Node) -> bool:
    """Whether something on the way from the residual to the value product is a norm of it."""
    roots = {id(residual)}
    node = residual
    while node.thin and node.parents:
        node = node.parents[0]
        roots.add(id(node))
    since = node.number
    return any(n.normalised is not None and id(n.normalised) in roots for n in mixed.ancestors(since))
