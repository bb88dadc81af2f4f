"""A few pairs of sentences that every tokenizer of the families can cut."""

GERMAN = "der kleine hund schläft unter dem tisch .".split()
ENGLISH = "the little dog sleeps under the table .".split()
PAIRS = [(GERMAN, ENGLISH), (["kühe", "!"], ["a", "naïve", "b"]), (["tisch"], ["table", "."])]
