"""An explanation as the record that Captum's ``visualization.visualize_text`` shows."""

from __future__ import annotations

from typing import Any

from captum_norm.explanation import Explanation


def captum_record(
    explanation: Explanation,
    example: int = 0,
    *,
    pred_prob: float = float("nan"),
    pred_class: Any = "",
    true_class: Any = "",
    convergence_score: float = float("nan"),
) -> Any:
    """A ``captum.attr.visualization.VisualizationDataRecord``.

    Args:
        explanation: of a batch.
        example: which of it; its padding is left out.
        pred_prob, pred_class, true_class, convergence_score: what the record says of the model, which an explanation
            does not hold.

    Returns:
        The record: words where the text is known, else tokens; their scores divided by the largest size, as Captum
        colours -1 to 1; the explained class, and the sum of the scores.

    Example:
        >>> from captum_norm import AttentionNorm, explain
        >>> from captum_norm.models import load_sentiment
        >>> model, tokenizer = load_sentiment()
        >>> found = explain(AttentionNorm(model), tokenizer("A warm film.", return_tensors="pt"), text="A warm film.")
        >>> captum_record(found).raw_input_ids
        ['[CLS]', 'A', 'warm', 'film.', '[SEP]']
    """
    from captum.attr import visualization  # type: ignore[import-untyped]

    labels, scores = explanation.pieces(example)
    largest = scores.abs().max().clamp_min(1e-300)
    return visualization.VisualizationDataRecord(
        scores / largest, pred_prob, pred_class, true_class, explanation.target, float(scores.sum()), list(labels),
        convergence_score,
    )  # fmt: skip
