"""How each torch operation is held fixed, a file per kind; importing this fills ``captum_norm.linear.frozen.RULES``.

Most operations are linear already: they move entries, add, or multiply by constants.  Operations without a rule are
refused by name, so that nothing is linear by accident.
"""

from captum_norm.linear.rules import activations, attention, constants, moves, norms, products, sums

__all__ = ["activations", "attention", "constants", "moves", "norms", "products", "sums"]
