"""Recording the attention calls of whatever runs inside a ``with``.

    with recording() as records:
        model.generate(**inputs)

Nothing is put on the model: its operations are watched while they run (:mod:`captum_norm.operations`), what
belongs to attention is followed (:mod:`captum_norm.capture.dataflow`), and each call is checked exact and handed over
as soon as it is complete.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import Module

from captum_norm.capture.answer import Recorded
from captum_norm.capture.blocks.stream import ResidualStream
from captum_norm.capture.dataflow import Dataflow
from captum_norm.capture.following import Following
from captum_norm.capture.names import Names
from captum_norm.capture.reader import OnInexact, OnRecord, RecordReader
from captum_norm.operations.modes import WatchingMode
from captum_norm.operations.sharded import is_distributed


@contextlib.contextmanager
def recording(
    on_record: OnRecord | None = None,
    *,
    sources: Sequence[Tensor] = (),
    model: Module | None = None,
    on_inexact: OnInexact | None = None,
    differentiable: bool = False,
    blocks: bool = False,
    chain: bool = False,
    refuse_dropout: bool = False,
    beside: Sequence[Tensor] = (),
    calls_only: bool = False,
    over_windows: bool = False,
    together: bool = False,
) -> Iterator[Recorded]:
    """Record every attention call of the code inside the ``with``, in this thread.

    The running model is untouched: no hook, no change of mode, config or random state; its outputs are bit-equal to
    the same forward without torch's fused fast path.  Calls whose exactness cannot be shown raise.

    Args:
        on_record: called with each :class:`AttentionRecord` when its call is complete, which is at the next attention
            call or at the end; the record is then dropped, so that one call is held at a time.  Weights are computed
            and checked when they are asked for: some rows by ``record.at(rows)``, all by ``record.weights``.  None
            collects all records, with all weights, in the list that the context yields.
        sources: the input tensors whose positions matter; ``record.keys.source`` is the index among them.
        model: names are relative to this module; by default to the outermost module that is running.
        on_inexact: called with the error of a call that cannot be read exactly, instead of raising it.
        differentiable: note each value product in autograd's graph, ``record.mixed``, so that gradients with respect to
            its weights can be taken afterwards.  The forward has to run with gradients enabled; where parameters are
            frozen, the graph begins at the first attention call.
        blocks: read the block around each call as well, ``record.block``: residual, norms and output.  A record is then
            handed over one attention call later, when it is known how the residual stream goes on.
        chain: note what each call was made of, ``record.fed``: whether the calls follow one another along one stream.
        beside: other tensors that are there before the model runs, such as masks.
        calls_only: read the calls, and follow neither positions nor what an output rests on: for more passes of a model
            of which that is known.
        over_windows: lay a call within windows alone over all positions, as large as the map of one that attends to
            all; by default each window is an example of its own.
        together: let calls that are complete wait for others, at most until the end, so that several are handed over at
            once; this costs less.  Calls with ``blocks`` do not wait.
        refuse_dropout: raise where the model drops anything out, as each of its runs is then another one.

    Yields:
        The list of records; empty while ``on_record`` is given.  It says what an output rests on, too, as long as the
        recording goes on.

    Raises:
        InexactCaptureError: where a call cannot be read exactly, naming the module, the error and the way out.

    Example:
        >>> attention = torch.nn.MultiheadAttention(8, num_heads=2, batch_first=True)
        >>> x = torch.randn(1, 5, 8)
        >>> with recording() as records:
        ...     _ = attention(x, x, x)
        >>> tuple(records[0].weights.shape), tuple(records[0].W_O.shape), float(records[0].certificate) < 1e-5
        ((1, 2, 5, 5), (2, 4, 8), True)
    """
    stream = ResidualStream() if blocks else None
    names = Names(model)
    records = Recorded()
    keep = on_record or (lambda record: records.append(record.lasting()))
    reader = RecordReader(names, keep, on_inexact, stream, over_windows)
    together = together and stream is None and not is_distributed()  # wrappers free weights behind their layer
    flow = records.flow = Dataflow(sources, reader.finish, differentiable, stream, names, chain, together)
    flow.refuses_dropout = refuse_dropout
    for tensor in beside:
        flow.tell(tensor)
    mode = WatchingMode(Following(flow, calls_only).rule_for, flow.complete.hand_over if together else None)
    try:
        with _uncompiled(), mode:
            yield records
        with torch._C.DisableTorchFunction(), torch.no_grad():
            flow.finish()
            flow.check_readers(on_inexact)
    finally:
        flow.forget()


@contextlib.contextmanager
def _uncompiled() -> Iterator[None]:
    """Compiled modules run eagerly for the time being: a compiled graph shows none of its operations."""
    import torch.compiler

    with torch.compiler.set_stance("force_eager"):
        yield
