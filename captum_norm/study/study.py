"""Which attribution method should be believed on this model?  Methods x metrics x data, in a store that can be resumed.

    Study(model, tokenizer, methods, metrics).run(data, store="study.db").table()

A study cuts its texts into batches of like length (`captum_norm.study.batches`) and commits every batch of every method
to the store as it finishes (`captum_norm.study.run.store`).  A study that was killed goes on where it stopped when it
is run again, and ends with the same numbers, bit for bit; under ``accelerate launch`` its processes share the batches
and end with the same numbers, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import nn

from captum_norm.forward import HFForward, Position
from captum_norm.methods import METHODS
from captum_norm.study.data import Fields
from captum_norm.study.metrics import Metric
from captum_norm.study.metrics.metric import Level
from captum_norm.study.report.results import Results
from captum_norm.study.run.choices import Choices
from captum_norm.study.run.locking import check_choices, locked_record
from captum_norm.study.run.store import Store
from captum_norm.study.run.working import begin, carry_out

_USUAL_METHODS = (
    "AttentionWeights AttentionRollout AttentionNorm AttentionBlockNorm GlobEnc ALTI DecompX Saliency InputXGradient "
    "IntegratedGradients FeatureAblation"
).split()

DEFAULT_METHODS = tuple(name for name in _USUAL_METHODS if name in METHODS)
"""The methods compared where none are named: the attention family, gradients, and one by removal."""


class Study:
    """Methods against each other on one model, by several metrics, on many texts.

    A random floor always takes part, and where the data has evidence an oracle that scores it 1 and all else 0.

    Args:
        model: a Hugging Face model in evaluation mode, on its device (or over several, by ``device_map``).
        tokenizer: its tokenizer; a fast one, since words and evidence are told by character offsets.
        methods: names of `captum_norm.methods.METHODS`, `Variant`, `StoredScores`, objects with Captum's ``attribute``
            over an `HFForward`, or functions ``f(forward, inputs, target) -> (batch, token)``; or a mapping from names
            to these.  None: `DEFAULT_METHODS`.
        metrics: names of `captum_norm.study.metrics.METRICS`, or metrics.  None: comprehensiveness and sufficiency,
            once and over fractions, log-odds and the area under deletion; with evidence also AUPRC, token F1 and IOU.
        removal: how metrics remove a token (`captum_norm.study.metrics.removal.REMOVALS`); None: as each metric says.
        level: what metrics rank and remove as a whole, ``"token"``, ``"word"`` or ``"source"`` (``Example.sources``);
            None: as each metric says.
        target: what is explained: ``"predicted"``, the class or next token the model finds most probable, or
            ``"label"``, the data's; ``"contrast"``, why the label and not the data's foil: methods that explain an
            output explain the lead, and metrics ask of these two alone.
        special: what becomes of special tokens: ``"mask"`` sets them aside (neither removed nor ranked), ``"keep"``
            treats them as any other, ``"report"`` sets them aside and reports the share of |score| they receive.
        position: whose row is explained, as for `HFForward`.
        batch_size: how many examples go through the model together.
        max_length: cut longer texts to so many tokens; None refuses texts that are too long for the model.
        seed: of the random floor, and of methods that draw random numbers.
        random_draws: how many draws the random floor is the mean over, where its expectation is not known.

    Raises:
        ValueError: for a model in training mode, and for choices that are not known.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from captum_norm.models import load_sentiment
        >>> study = Study(*load_sentiment(), methods=["AttentionNorm"], metrics=["comprehensiveness"])
        >>> with TemporaryDirectory() as folder:
        ...     results = study.run(["A warm film.", "A cold one."], f"{folder}/study.db", progress=False)
        >>> results.methods, results.metrics
        (('AttentionNorm', 'random'), ('comprehensiveness',))
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        methods: Sequence[Any] | Mapping[str, Any] | None = None,
        metrics: Sequence[str | Metric] | None = None,
        *,
        removal: str | None = None,
        level: Level | None = None,
        target: Literal["predicted", "label", "contrast"] = "predicted",
        special: Literal["mask", "keep", "report"] = "mask",
        position: Position = None,
        batch_size: int = 16,
        max_length: int | None = None,
        seed: int = 0,
        random_draws: int = 10,
    ) -> None:
        self.forward = HFForward(model, position=position)
        self._choices = Choices(
            self.forward,
            tokenizer,
            DEFAULT_METHODS if methods is None else methods,
            metrics,
            removal,
            level,
            target,
            special,
            batch_size,
            max_length,
            seed,
            random_draws,
        )

    def run(
        self,
        data: Iterable[Any] | str | Path,
        store: str | Path,
        *,
        fields: Fields | None = None,
        progress: bool = True,
    ) -> Results:
        """Run all that the store does not hold yet: methods, metrics and examples may be added to it.

        Args:
            data: a path or data set id for `read_examples`, or texts, mappings or `Example`.
            store: the file that results are kept in; made if it is not there, continued if it is.
            fields: which field of a record holds what.
            progress: whether to show a bar with rate and remaining time.

        Returns:
            The results, read from the store.

        Raises:
            StoreMismatchError: if the store belongs to another study.
            OSError: if it cannot be written; what was finished is kept.
            ValueError: naming the example, for data that cannot be studied.
        """
        path = Path(store)
        carry_out(self._choices.plan(data, fields, path), path, progress)
        return Results(path)

    def lock(
        self, data: Iterable[Any] | str | Path, store: str | Path, *, fields: Fields | None = None, **choices: Any
    ) -> str:
        """Write down what will be run and how it will be judged, before anything is run.

        The report of the store then says when the plan was locked, and what was added or judged otherwise since.

        Args:
            data: as for `run`.
            store: a new file.
            fields: as for `run`.
            **choices: arguments of `Results.table` (reference, test, correction, margin ...) that will be used.

        Returns:
            A hash of the plan and the choices, to be published or sent to somebody.

        Raises:
            ValueError: if the store holds results, or another plan is locked in it.
        """
        check_choices(choices)
        plan = self._choices.plan(data, fields, Path(store))
        with Store(store) as whole:
            if whole.finished() or whole.about("locked") is not None:
                raise ValueError(f"{store} holds results or a locked plan: a plan is locked before the run.")
            begin(whole, plan)
            locked = locked_record(plan.config, choices)
            whole.note("locked", locked)
        return str(locked["hash"])
