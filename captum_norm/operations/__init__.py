"""What a torch operation is, told once: its name, its kind, how it is seen, called again and repeated on positions.

Capture, blocks, linear and intervention are tables of rules over these operations.  What a rule does is theirs; what an
operation *is* stands here.

* :mod:`~captum_norm.operations.operation`: a call under its one name, and how to make it again.
* :mod:`~captum_norm.operations.kinds`: the table of all operations that any rule knows, by kind.
* :mod:`~captum_norm.operations.rules`: a table of rules, for names and for kinds.
* :mod:`~captum_norm.operations.modes`: watching a model's operations, or putting others in their place.
* :mod:`~captum_norm.operations.facts`: what is known of a tensor, forgotten with it.
* :mod:`~captum_norm.operations.steps`, :mod:`~captum_norm.operations.places`: moves, and where positions are.
* :mod:`~captum_norm.operations.callers`: the modules that are running, and what they were given.
* :mod:`~captum_norm.operations.precision`: what rounding explains, by number format.
"""
