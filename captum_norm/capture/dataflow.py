"""Following attention through a running model: softmax -> value product -> reshapes and gates -> projection.

``RULES`` says what a torch operation does to what is known of its operands.  The rules are in
:mod:`captum_norm.capture.rules`, a file per step of the way.  An operation without a rule of its own keeps the
positions of an operand of its shape, which it is taken to mix, and loses everything else, so that what we do not
understand is refused later and never guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from captum_norm.capture.blocks.stream import ResidualStream
from captum_norm.capture.call import InexactCaptureError, Mixer
from captum_norm.capture.chain import Chain
from captum_norm.capture.columns import Columns
from captum_norm.capture.complete import CompleteCalls
from captum_norm.capture.factors import Factors
from captum_norm.capture.graph import edge_of
from captum_norm.capture.ledger import Along, Ledger, Softmax
from captum_norm.capture.mask_origins import MaskOrigins
from captum_norm.capture.names import Names
from captum_norm.capture.opaque import OpaqueParts
from captum_norm.capture.projections import Projections
from captum_norm.capture.reach import INPUT, Reach
from captum_norm.capture.readers import Readers
from captum_norm.capture.readout import ReadOuts
from captum_norm.capture.traces import Mixed, Mixture, Trace, Traces
from captum_norm.operations.callers import Caller, innermost_module, running_modules
from captum_norm.operations.facts import Facts
from captum_norm.operations.operation import Operation
from captum_norm.operations.places import Anchor, Place, Places, WholeAxes, along, patches
from captum_norm.operations.rules import RuleTable
from captum_norm.operations.steps import Step
from captum_norm.operations.storages import storage_of

Rule = Callable[["Dataflow", Operation], None]
RULES: RuleTable[Rule] = RuleTable()
rule = RULES.rule


class Dataflow:
    """What is known of the tensors of one running forward, and the attention calls that are under way."""

    def __init__(
        self, sources: Iterable[Tensor], finish: Callable[[tuple[Mixture, ...]], None], differentiable: bool = False,
        stream: ResidualStream | None = None, names: Names | None = None, chain: bool = False, together: bool = False,
    ) -> None:  # fmt: skip
        self.traces = Traces()
        self.places, self.reach = Places(), Reach()
        self.rows = ReadOuts(self.traces, self.reach, self.places)
        self.chain = Chain(self.reach, self.module) if chain else None
        self.ledger = Ledger()
        self.masks = MaskOrigins(self.reach, self.is_given)
        self.shallow: Facts[Tensor] = Facts()  # scores -> what a shallow mask, such as -100, allows of them
        self.exponentials: Facts[Columns] = Facts()  # exp(scores) -> what the softmax written by hand allows
        self.unrounded: Facts[Tensor] = Facts()  # of what was made into integers of few bits, what it was
        self._names = names or Names(None)
        self.opaque = OpaqueParts(self.reach, self._names)
        self._born = self._outside = 0
        self.calls = 0  # the bits of all attention calls
        self._operation: Operation | None = None
        self._callers: tuple[Caller, ...] | None = None
        self.refuses_dropout = False
        self.output_bits: int | None = None  # of the output, once it is known
        self.stream, self.projections = stream, Projections(stream, lambda: self.callers)
        if stream is not None:
            stream.agree = self._agree
        self.readers = Readers(self.traces, self.projections, self.reach, self.module)
        self.factors = Factors(self.traces, self.projections, self.reach, self.places, self.module)
        self.complete, self.differentiable = CompleteCalls(finish, together), differentiable
        self._open: list[Mixture] = []
        self._anchors = self._embeddings = self._latents = 0
        named = tuple(sources)
        self._has_sources = bool(named)
        for index, source in enumerate(named):
            self._name_source(index, source)

    def _name_source(self, index: int, source: Tensor) -> None:
        self.reach.add(source, INPUT | self.reach.new_bit())
        if self.chain is not None and source.is_floating_point():
            self.chain.begin(source)
        self.opaque.know(source)
        if source.ndim < 2 or self.traces[source] is not None:
            return
        # Ids or a gate (batch, position), vectors (batch, position, model), pictures (batch, channel, *grid).
        axes = (1,) if source.ndim < 4 else tuple(range(2, source.ndim))
        self.traces[source] = Trace(place=Place(Anchor(index, tuple(source.shape), axes, self.next_anchor())))

    def tell(self, tensor: Tensor) -> None:
        """A tensor that was there before the model ran, and is no input: a mask."""
        self.opaque.know(tensor)
        self.reach.tell(tensor)

    @property
    def callers(self) -> tuple[Caller, ...]:
        """The modules in which the operation that is running was called, read from the stack once."""
        if self._operation is None:
            return running_modules()
        if self._callers is None:
            self._callers = running_modules()
        return self._callers

    def next_anchor(self) -> int:
        self._anchors += 1
        return self._anchors

    def next_embedding(self) -> str:
        self._embeddings += 1
        return f"embedding {self._embeddings - 1}"

    def is_learned(self, tensor: Tensor) -> bool:
        """Whether no input has a part in a tensor, where inputs are followed: queries that are parameters."""
        trace = self.traces[tensor]
        placed = trace is not None and trace.place is not None
        return self._has_sources and not placed and self.reach.of(tensor) <= INPUT

    def latents(self, shape: torch.Size, axis: int) -> Place:
        """Positions begin to count along an axis of something that is no input, alike in all examples."""
        self._latents += 1
        anchor = Anchor(f"latents {self._latents - 1}", (1, shape[axis]), (1,), self.next_anchor())
        return along(anchor, shape, axis)

    def begin(self, op: Operation) -> None:
        """An operation is taken in from here on."""
        self._operation, self._callers = op, None

    def end(self) -> int:
        """It was taken in; the bits that were born with it."""
        born, self._born, self._operation, self._callers = self._born, 0, None, None
        return born

    def _agree(self, first: Tensor, second: Tensor) -> bool:
        """Whether two tensors of one shape lie at the same positions, as far as is known."""
        ours, theirs = (None if trace is None else trace.place for trace in (self.traces[first], self.traces[second]))
        return ours is None or theirs is None or self.places.agree(ours, theirs, first.shape)

    def unchosen(self, tensors: Sequence[Tensor] | None = None) -> Tensor | None:
        """What scores or weights would be if none had been left out for being small; None where none was.

        Args:
            tensors: which; by default what the operation that is running takes.
        """
        operation = self._operation
        return self.masks.unchosen(operation.tensors if tensors is None and operation else tensors or ())

    # ---- what mixes positions

    def drops_out(self, probability: float) -> None:
        """The operation that is running drops out entries: refused where each run of the model should be the same.

        Raises:
            InexactCaptureError: there.
        """
        if self.refuses_dropout:
            raise InexactCaptureError(
                f"{self.module() or 'the model'} is in training mode: its dropout (p = {probability}) makes each run "
                "another one, and weights that do not sum to 1. Call model.eval() first."
            )

    def know_mixed(self, tensor: Tensor) -> None:
        """Take note of a tensor that was made of positions by operations that are not followed."""
        self._outside = self._outside or INPUT | self.reach.new_bit()
        self.reach.add(tensor, self._outside)
        self.opaque.know(tensor)

    def begins(self, made_of: Tensor) -> None:
        """Positions begin to count in what this operation gives out, unless no input has a part in it."""
        if not self._has_sources or self.reach.of(made_of) & INPUT:
            self._born |= self.reach.new_bit()

    def is_moved(self, tensor: Tensor, beside: Tensor) -> bool:
        """Whether a tensor of unknown positions may hold others than those of a tensor beside it.

        A constant does not, and neither do numbers that choose (ids, masks, routes).
        """
        return self.reach.of(tensor) > INPUT and not self.is_constant(tensor, beside)

    def is_given(self, tensor: Tensor) -> bool:
        """Whether something given to the model has a part in a tensor, in contrast to one that it makes of itself."""
        return self.reach.is_given(tensor) or not self.opaque.knows(tensor)

    def is_held(self, tensor: Tensor) -> bool:
        """Whether a tensor is a parameter or a buffer of a module that is running, or a view of one."""
        storage, modules = storage_of(tensor), [caller.module for caller in self.callers]
        held = (one for module in modules for one in (*module._parameters.values(), *module._buffers.values()))
        return any(storage == storage_of(one) for one in held if one is not None)

    def is_constant(self, tensor: Tensor, beside: Tensor) -> bool:
        """Whether a tensor is made of no input, in contrast to the one beside it (a table of position embeddings)."""
        return self._has_sources and not self.reach.of(tensor) & INPUT and bool(self.reach.of(beside) & INPUT)

    def mixed_by(self, place: Place, why: str) -> Place:
        """The place with the operation that is running among what has mixed positions, unless no input has a part."""
        op = self._operation
        if op is not None and self._has_sources and not self.reach.of_all(op.tensors) & INPUT:
            return place
        name = "" if op is None else op.name
        return place.mixed_by(frozenset((Mixer(name, self.module(), why),)))

    def module(self) -> str:
        """The name of the module that is running."""
        known = self._names.known(innermost_module()) if self._callers is None else None
        return known or self._names.module(tuple(caller.module for caller in self.callers))

    def read_whole(self, place: Place, out: Tensor, axis: int = -1) -> Place | None:
        """Where the result lies that an operation made of all entries along an axis, writing as many as it likes.

        Where these are several positions, an operation that writes as many entries as it read leaves them where they
        were, and mixes them.
        """
        axis %= out.ndim
        place = self.cut_into_patches(place, (axis,)) or place
        if self.places.holds_one(place, (axis,)):
            if axis == out.ndim - 1:
                return place.of_features(out.shape[-1])
            return place.then(WholeAxes((axis,), out.shape))
        numbers = place.numbers()
        if numbers is None:
            return None
        if len(set(numbers.movedim(axis, 0).flatten(1)[:, 0].tolist())) < numbers.shape[axis]:  # features of several
            return self.mixed_by(place.of_features(out.shape[-1]), "it reads several positions at once")
        if numbers.shape != out.shape:
            return None
        return self.mixed_by(place, "it reads several positions at once")

    def softmax(
        self, op: Operation, scores: Tensor | torch.Size, axis: int | None, along: Along = "unknown"
    ) -> tuple[Softmax, ...]:
        """Note that scores become weights along an axis; none where no input has a part in them."""
        bits = self.reach.of_all(op.tensors)
        shape = scores.shape if isinstance(scores, Tensor) else scores
        if bits <= INPUT or (axis is not None and shape[axis] == 1):
            return ()
        axis = None if axis is None else axis % len(shape)
        along = self._along(scores, axis) if isinstance(scores, Tensor) else along
        softmax = Softmax(self.module(), tuple(shape), axis, along, bit=self.reach.new_bit(), ancestors=bits)
        self._born |= softmax.bit
        self.ledger.note(softmax)
        return (softmax,)

    def _along(self, scores: Tensor, axis: int | None) -> Along:
        if axis == scores.ndim - 1 and scores in self.ledger.written:
            return "features"
        trace = self.traces[scores]
        if trace is None or axis is None:
            return "unknown"
        if trace.scores is not None and trace.scores.axis == axis:
            return "positions"
        if trace.place is None or trace.place.numbers() is None:
            return "unknown"
        return "features" if self.places.holds_one(trace.place, (axis,)) else "positions"

    def cut_into_patches(self, place: Place, axes: tuple[int, ...]) -> Place | None:
        """The place with a patch as one position, where no attention has mixed what these axes hold; else None."""
        op = self._operation
        if len(place.anchor.grid) < 2 or self.places.holds_one(place, axes) or op is None:
            return None
        if self.reach.of_all(op.tensors) & self.calls:
            return None
        return patches(place, axes, self.next_anchor())

    def step(self, tensor: Tensor, step: Step) -> Tensor:
        """The tensor after a step of our own, with its place; in autograd's graph if the tensor is."""
        with torch.set_grad_enabled(tensor.requires_grad):
            moved = step.apply(tensor)
        trace = self.traces[tensor]
        if trace is not None and moved is not tensor:
            place, weights = trace.place and trace.place.then(step), trace.weights and trace.weights.then(step)
            self.traces[moved] = trace._replace(place=place, weights=weights)
        return moved

    # ---- attention calls

    def mixes(self, mixture: Mixture, of_weights: Sequence[Tensor], values: Tensor) -> None:
        """Note what the weights and the values of a call were made of."""
        mixture.reach = self.reach.of_all(list(of_weights)) & ~INPUT, self.reach.of(values) & ~INPUT
        if self.chain is not None:
            mixture.fed = self.chain.mixed(of_weights, values)

    def mix(self, mixture: Mixture, out: Tensor, steps: tuple[Step, ...], place: Place | None) -> None:
        """A value product: an attention call begins, and those that have their projection are finished."""
        if self._operation is not None:
            mixture.ancestors = self.reach.of_all(self._operation.tensors)
            mixture.selections = self.masks.selections(self._operation.tensors)
        self.finish(before=mixture)
        self._open.append(mixture)
        if self.stream is not None:
            self.stream.mixed(mixture)
        mixture.steps = steps
        mixture.settle("call")
        mixture.bit = self.reach.new_bit()
        self._born |= mixture.bit
        self.calls |= mixture.bit
        if self.differentiable and out.is_inference():
            mixture.problem = mixture.problem or (
                "it runs under torch.inference_mode(), where nothing has a gradient; explain a function that runs the "
                "model without it"
            )
        if self.differentiable and not mixture.problem:
            mixture.edge = edge_of(out)
        if place is not None and place.mixers:  # what moved the queries moves no value
            place = Place(place.anchor, place.steps)
        self.traces[out] = Trace(mixed=(Mixed(mixture, steps),), place=place)
        self.readers.hold(out)

    def lose(self, mixtures: list[Mixture]) -> None:
        """Note the operation that is running as the last one that read these mixed values."""
        if self._operation is not None:
            callers = self.callers
            where = f" in {self._names.module(tuple(c.module for c in callers))!r}" if callers else ""
            kind = f" ({type(callers[-1].module).__name__})" if callers else ""
            for mixture in mixtures:
                mixture.last_reader = f"operation {self._operation.name!r}{where}{kind}"

    def project(
        self, x: Tensor, W: Tensor, bias: Tensor | None, out: Tensor, parameter: Tensor, number_format: str = ""
    ) -> None:
        """x (..., column) @ W (column, model) + bias = out, where x may hold mixed values or a branch of W_O.

        Where the weight is in a ``number_format`` of its own, ``out`` may differ by what this rounds.
        """
        trace = self.traces[x]
        if trace is None:
            return
        projection = self.projections.of(trace, x, W, bias, out, parameter, number_format)
        place = trace.place and self.read_whole(trace.place, out)
        self.traces[out] = Trace(projection=projection, place=place)

    def finish(self, before: Mixture | None = None) -> None:
        """Hand over the calls that are complete before another one begins; all of them at the end of the recording.

        What mixes beside that one in the same module may be heads of one call with it, each with its part of W_O.
        """
        done = self._open
        if before is None and self.output_bits is None:
            self.factors.end_with(None)
        if before is not None:
            done = [m for m in done if m.projection is not None and not m.may_be_one_with(before)]
        if self.stream is not None and before is not None and done:
            # How the stream goes on from the last one is told by the residual of the next.
            done = [mixture for mixture in done if not self.stream.are_one(mixture, done[-1])]
        self._open = [mixture for mixture in self._open if mixture not in done]
        together: dict[int, list[Mixture]] = {}
        for mixture in done:
            together.setdefault(id(mixture if mixture.projection is None else mixture.projection), []).append(mixture)
        for mixtures in together.values():
            problem = self.readers.settle(mixtures, self.output_bits if before is None else before.ancestors)
            for mixture in mixtures if problem else ():
                mixture.problem = mixture.problem or problem
            self.complete.add(tuple(mixtures))
        if before is None:
            self.complete.hand_over()

    def check_readers(self, on_inexact: Callable[[InexactCaptureError], None] | None) -> None:
        """Refuse where the output rests on mixed values of a call that was handed over by another way than its W_O.

        Args:
            on_inexact: told instead of raising.

        Raises:
            InexactCaptureError: there.
        """
        found = self.readers.problem_behind(self.output_bits or 0)
        if found is None:
            return
        problem, calls, modules = found
        error = InexactCaptureError(f"{self._names.module(modules)}: {problem}.")
        error.bit = calls
        if on_inexact is None:
            raise error
        on_inexact(error)

    def forget(self) -> None:
        """Drop everything that is held."""
        self._open.clear()
        self.complete.clear()
        self.traces.clear()
        self.shallow.clear()
        self.exponentials.clear()
        self.unrounded.clear()
        self.reach.clear()
        if self.chain is not None:
            self.chain.clear()
        self.rows.clear()
        self.readers.clear()
        self.factors.clear()
        self.opaque.clear()
        self.masks.clear()
        self.ledger.written.clear()
        if self.stream is not None:
            self.stream.clear()
