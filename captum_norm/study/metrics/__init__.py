"""How good are a method's scores?  One class for each metric, and a table of them with their usual parameters.

Faithfulness, by what the model does without some tokens: ``erasure``, ``soft``, ``curves``, ``leave_one_out``, and
Captum's own two in ``captums``.  Plausibility, against evidence: ``plausibility``.  Passages of a context:
``contexts``.  Sanity: ``randomised``.  What they stand on: ``metric`` (what a metric is), ``scored_texts`` (what it
measures), ``order`` (which tokens come first), ``removal``, ``perturbed`` and ``answers`` (the model on texts without
some tokens), ``seeding`` (random numbers of a text's own).

A new metric is a class with a ``name`` in a file of this package; the table finds it.
"""

from collections.abc import Iterator
from importlib import import_module
from pkgutil import iter_modules

from captum_norm.study.metrics.captums import Infidelity, Sensitivity
from captum_norm.study.metrics.contexts import LinearDatamodelingScore, Recovery, TopDrop
from captum_norm.study.metrics.curves import DeletionArea, InsertionArea
from captum_norm.study.metrics.erasure import (
    AOPCComprehensiveness,
    AOPCSufficiency,
    Comprehensiveness,
    LogOdds,
    LogPChange,
    Sufficiency,
)
from captum_norm.study.metrics.leave_one_out import LeaveOneOutChangeCorrelation, LeaveOneOutCorrelation
from captum_norm.study.metrics.metric import Attribute, Metric, variations
from captum_norm.study.metrics.plausibility import (
    AUPRC,
    IOU,
    SpanIOU,
    TokenF1,
    average_precision,
    random_average_precision,
)
from captum_norm.study.metrics.randomised import RandomisedWeights
from captum_norm.study.metrics.soft import SoftComprehensiveness, SoftSufficiency


def _with_a_name(kind: type[Metric]) -> Iterator[type[Metric]]:
    """The kinds of metric below one, abstract ones left out."""
    for below in kind.__subclasses__():
        if "name" in vars(below):
            yield below
        yield from _with_a_name(below)


for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

METRICS: dict[str, Metric] = {kind.name: kind() for kind in sorted(_with_a_name(Metric), key=lambda kind: kind.name)}
"""Every metric of this package's files under its name, with its usual parameters; others by
``dataclasses.replace(metric, removal="mask")``."""

__all__ = [
    "AUPRC",
    "IOU",
    "METRICS",
    "AOPCComprehensiveness",
    "AOPCSufficiency",
    "Attribute",
    "Comprehensiveness",
    "DeletionArea",
    "Infidelity",
    "InsertionArea",
    "LeaveOneOutChangeCorrelation",
    "LeaveOneOutCorrelation",
    "LinearDatamodelingScore",
    "LogOdds",
    "LogPChange",
    "Metric",
    "RandomisedWeights",
    "Recovery",
    "Sensitivity",
    "SoftComprehensiveness",
    "SoftSufficiency",
    "SpanIOU",
    "Sufficiency",
    "TokenF1",
    "TopDrop",
    "average_precision",
    "random_average_precision",
    "variations",
]
