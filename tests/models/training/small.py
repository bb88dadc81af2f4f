"""A few sentences and a run so small that a test can train it."""

from captum_norm.models.training.parallel_text import (
    Pair,
)
from captum_norm.models.training.translation_run import TranslationRun, TranslationSettings
from captum_norm.models.translation_text import translation_words

SENTENCES = [
    Pair(translation_words(german), translation_words(english))
    for german, english in [
        ("Der Hund schläft.", "The dog sleeps."),
        ("Die Katze schläft.", "The cat sleeps."),
        ("Der Hund sieht die Katze.", "The dog sees the cat."),
        ("Die Katze sieht den Hund nicht.", "The cat does not see the dog."),
        ("Wir haben einen Hund.", "We have a dog."),
        ("Wir haben keine Katze!", "We have no cat!"),
        ("Weiß der Hund, dass wir da sind?", "Does the dog know that we are there?"),
        ("Das ist gut.", "That is good."),
    ]
]
SMALL = TranslationSettings(tokens=600, cool_down=100, warmup=3, part=60, vocabulary=100, held_out=(1, 1, 1))


def a_run(folder, pieces, settings=SMALL, threads=1):
    folder.mkdir(exist_ok=True)
    pieces.save(str(folder / "pieces.json"))
    return TranslationRun(folder, pieces, settings, threads)
