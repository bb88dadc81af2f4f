"""A machine that looks for silence: random transformers, each asked everything, each answer beside the truth.

    python -m tests.random_models --models 10000 --jobs 2           # a table by kind; exit status 1 if any is silent
    python -m tests.random_models --models 500 --kind mixers --details --json found.json
    python -m tests.random_models --models 1000 --twins             # other methods, beside the function's usual form
    python -m tests.random_models --seed 42 --show                  # one model, and every answer about it
    python -m tests.random_models --seed 42 --check ALTI --keep some_name --about "What is wrong."

An answer is *right*; or *refused*, by an error of ours; or *silent*, that is wrong without a word; or a *crash*, an
error that is not ours.  The package promises that none is silent; the machine shows where that does not hold.

======================  ==============================================================================================
file                    what it answers
======================  ==============================================================================================
``config``              Which model?  A description, drawn from one integer: ``drawn(seed)``.
``parameters``          Its numbers in mathematical form, before any module lays them out, and its inputs.
``attention, model``    The model in plain torch, written in one of the ways in which people write models.
``opaque``              Parts of it that cannot be looked into.
``oracle, formulas``    The same function a second time, slowly, from the formulas alone: never sees the model.
``truth``               What the oracle then knows: calls, what feeds what, what mixes, which row is read.
``definitions``         What each method must answer, from that.
``check``               Each answer, classified.
``twins``               Answers of methods without a definition here, beside those about the function's usual form.
``positions``           Rows that a user asks for by position: one, all, all of one call.
``table, __main__``     Counted by kind; the command.
``named_cases``         Faults that were found, as plain as they get, in ``cases/``; faults known in ordinary models.
``erasure``             A third look, for the tests of the oracle: values set to zero below torch functions.
======================  ==============================================================================================

To add a form, a mixer or a read-out: its name in ``config``, its torch code in ``attention`` or ``model``, its formula
in ``formulas`` or ``oracle``.  The tests of the oracle then hold the two together.

What counts as right where the papers leave it open is in ``definitions``.  Rows of padding are never looked at, and a
call whose result goes nowhere may be among the maps or not.
"""
