"""The earlier place of ``words``, which is now :func:`captum_norm.models.translation_words`."""

from captum_norm.models.translation_text import translation_words as words

__all__ = ["words"]
