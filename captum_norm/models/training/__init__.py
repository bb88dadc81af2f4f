"""What trained the shipped models; loading and using them needs none of it, and the installed package leaves it out.

Run it from the root of a checkout:

    python -m captum_norm.models.training.sentiment --help
    python -m captum_norm.models.training.translation --help

``captum_norm/models/MODEL_CARD.md`` has the lines that made the shipped files, and says which data they need.
"""
