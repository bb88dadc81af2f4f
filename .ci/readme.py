"""Prints the README's code block that follows ``<!-- NAME -->``, so that CI runs what readers copy.

python .ci/readme.py test-line
"""

import re
import sys
from pathlib import Path


def block(name: str, text: str) -> str:
    """The body of the one fenced block right under the marker."""
    found = re.findall(rf"<!-- {re.escape(name)} -->\n```\w*\n(.*?)```", text, flags=re.DOTALL)
    if len(found) != 1:
        raise SystemExit(f"README.md: expected one code block under <!-- {name} -->, found {len(found)}.")
    return str(found[0]).strip()


if __name__ == "__main__":
    print(block(sys.argv[1], (Path(__file__).resolve().parents[1] / "README.md").read_text()))
