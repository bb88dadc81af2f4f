"""Which attribution method should be believed on this model?  Methods, metrics and data in one study.

``Study(model, tokenizer, methods, metrics).run(data, store="study.db")`` gives `Results`.  `metrics`, `agreement`,
`report.statistics` and `planted` can be used by themselves.
"""

import sys

from captum_norm.study.data import Example, Fields, read_examples
from captum_norm.study.metrics import METRICS, Metric, removal, scored_texts
from captum_norm.study.report import cells, statistics, tables
from captum_norm.study.report.measured import Failure
from captum_norm.study.report.results import Results
from captum_norm.study.run.comparing import StoreMismatchError
from captum_norm.study.run.sums import DamagedStoreError
from captum_norm.study.study import DEFAULT_METHODS, Study
from captum_norm.study.variants import StoredScores, Variant

# Where the documentation told users to find them before they moved.
_FORMER_PATHS = {
    "cells": cells,
    "removal": removal,
    "scored": scored_texts,
    "statistics": statistics,
    "tables": tables,
}
sys.modules.update({f"{__name__}.{name}": module for name, module in _FORMER_PATHS.items()})
scored = scored_texts

__all__ = [
    "DEFAULT_METHODS",
    "METRICS",
    "DamagedStoreError",
    "Example",
    "Failure",
    "Fields",
    "Metric",
    "Results",
    "StoreMismatchError",
    "StoredScores",
    "Study",
    "Variant",
    "read_examples",
]
