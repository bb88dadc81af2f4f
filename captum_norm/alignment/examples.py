"""A dozen short sentences with translations and links, written for this package: something to look at at once."""

from __future__ import annotations

from captum_norm.alignment.links import GoldLinks

# German, English, sure links, possible links; counted from 0, the German word first.
_EXAMPLES = (
    ("das haus am see ist klein .", "the house by the lake is small .",
     "0-0 1-1 2-2 2-3 3-4 4-5 5-6 6-7", ""),
    ("ich habe gestern zwei neue bücher gekauft .", "i bought two new books yesterday .",
     "0-0 6-1 3-2 4-3 5-4 2-5 7-6", "1-1"),
    ("wann kommt der nächste zug aus köln ?", "when does the next train from cologne come ?",
     "0-0 2-2 3-3 4-4 5-5 6-6 1-7 7-8", "1-1"),
    ("meine schwester wohnt seit drei jahren in hamburg .", "my sister has lived in hamburg for three years .",
     "0-0 1-1 2-3 6-4 7-5 3-6 4-7 5-8 8-9", "2-2"),
    ("er hat mir auf den brief nicht geantwortet .", "he did not answer me about the letter .",
     "0-0 1-1 6-2 7-3 2-4 3-5 4-6 5-7 8-8", ""),
    ("wir müssen morgen sehr früh aus dem haus .", "we have to leave the house very early tomorrow .",
     "0-0 1-1 1-2 6-4 7-5 3-6 4-7 2-8 8-9", "5-3"),
    ("der alte hund schläft unter dem tisch .", "the old dog is sleeping under the table .",
     "0-0 1-1 2-2 3-4 4-5 5-6 6-7 7-8", "3-3"),
    ("kannst du deinem bruder bitte das salz geben ?", "can you give your brother the salt , please ?",
     "0-0 1-1 7-2 2-3 3-4 5-5 6-6 4-8 8-9", "4-7"),
    ("sie weiß , dass ihr vater recht hat .", "she knows that her father is right .",
     "0-0 1-1 3-2 4-3 5-4 7-5 6-6 8-7", "2-2"),
    ("im winter ist es in diesem zimmer sehr kalt .", "it is very cold in this room in winter .",
     "3-0 2-1 7-2 8-3 4-4 5-5 6-6 0-7 1-8 9-9", ""),
    ("das parlament wird morgen über den bericht abstimmen .", "parliament will vote on the report tomorrow .",
     "1-0 2-1 7-2 4-3 5-4 6-5 3-6 8-7", "0-0"),
    ("warum hast du den kindern nichts davon erzählt ?", "why did you tell the children nothing about it ?",
     "0-0 1-1 2-2 7-3 3-4 4-5 5-6 6-7 8-9", "6-8"),
)  # fmt: skip


def examples() -> tuple[list[tuple[list[str], list[str]]], list[GoldLinks]]:
    """The pairs, German first, as words, and their links.

    >>> pairs, gold = examples()
    >>> pairs[0][0][1], pairs[0][1][1], (1, 1) in gold[0].sure
    ('haus', 'house', True)
    """
    pairs = [(german.split(), english.split()) for german, english, _, _ in _EXAMPLES]
    return pairs, [GoldLinks(_links(sure), _links(possible)) for _, _, sure, possible in _EXAMPLES]


def _links(text: str) -> list[tuple[int, int]]:
    return [(int(s), int(t)) for s, _, t in (item.partition("-") for item in text.split())]
