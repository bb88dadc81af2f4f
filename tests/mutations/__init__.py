"""One-line changes of the package that the tests must notice: ``python -m tests.mutations``."""
