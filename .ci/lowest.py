"""The lowest versions that pyproject.toml claims, as requirements for pip; the test tools as constraints.txt has them.

    pip install $(python .ci/lowest.py)

The rest (tokenizers, huggingface-hub, ...) is left to pip, because the old transformers needs other versions of it.
"""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def name_of(requirement: str) -> str:
    """'x-transformers>=2.0' -> 'x-transformers'."""
    return re.split(r"[><=!~\[; ]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def floor_of(requirement: str) -> str:
    """'captum>=0.9.0' -> 'captum==0.9.0'.  Refuses what is no plain lower bound and so has no floor to test."""
    if not re.fullmatch(r"[\w.-]+>=[\w.]+", requirement):
        raise SystemExit(f"pyproject.toml: {requirement!r} is no plain lower bound (name>=version).")
    return requirement.replace(">=", "==")


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    tested = {name_of(line): line for line in lines if line and not line.startswith("#")}
    extras = project["optional-dependencies"]
    claimed = {name_of(requirement) for requirement in extras["study"]}  # what users install; the rest are tools
    floors = [floor_of(requirement) for requirement in project["dependencies"]]
    floors += [floor_of(requirement) for requirement in extras["test"] if name_of(requirement) in claimed]
    tools = [tested[name] for name in map(name_of, extras["test"]) if name not in claimed]
    print("\n".join(floors + tools))


if __name__ == "__main__":
    main()
