"""Running a layer of a model again on its own input, with something in it changed: what a change inside causes.

:mod:`~captum_norm.intervention.layers` says which module is the layer around an attention call,
:mod:`~captum_norm.intervention.replay` runs it again, and :mod:`~captum_norm.intervention.zeroing` does so with the
value vectors of one key after the other set to zero.
"""

from captum_norm.intervention.zeroing import LayerScores, Outline, value_zeroing_maps

__all__ = ["LayerScores", "Outline", "value_zeroing_maps"]
