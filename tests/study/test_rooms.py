"""The rooms of a study: imports point one way, and former paths lead to where things are now."""

from importlib import import_module

from tests.test_architecture import IMPORTS

# From the bottom up.  A room may import from the rooms before it, and its own.
ROOMS = (
    "all_pairs",
    "agreement",
    "records",
    "data",
    "published",
    "evidence",
    "sample_texts",
    "variants",
    "metrics",
    "tokenized",
    "batches",
    "planted",
    "scorers",
    "run",
    "report",
    "config",
    "study",
)


def room_of(module: str) -> str | None:
    names = module.split(".")
    return names[2] if names[:2] == ["captum_norm", "study"] and len(names) > 2 and names[2] in ROOMS else None


def test_a_room_knows_those_below_it_only():
    rooms = [(found.importer, room_of(found.importer), found.imported, room_of(found.imported)) for found in IMPORTS]
    wrong = [
        f"{importer} imports {imported}"
        for importer, room, imported, other in rooms
        if room and other and ROOMS.index(other) > ROOMS.index(room)
    ]
    assert not wrong


def test_former_paths_that_the_documentation_named_remain():
    for path, name in {
        "removal": "REMOVALS",
        "scored": "Scored",
        "statistics": "holm",
        "tables": "StudyTable",
        "cells": "Cell",
    }.items():
        former = import_module(f"captum_norm.study.{path}")
        assert getattr(former, name)
        assert getattr(import_module("captum_norm.study"), path) is former
