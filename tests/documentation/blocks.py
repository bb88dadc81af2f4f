"""The blocks of code in README and the documentation, and what runs each of them."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs/modules").glob("*.md"))]
CODE = ("bash", "console", "python", "toml")
_FENCE = re.compile(r"^(?:<!-- ([\w-]+) -->\n)?( *)```(\S*)[^\n]*\n(.*?)^\2```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """One block: its page, the line of its fence, the marker above it, its language and what is typed."""

    page: str
    line: int
    marker: str
    language: str
    code: str

    @property
    def lines(self) -> list[str]:
        """What is typed, without prompts."""
        return [line.removeprefix("$ ") for line in self.code.splitlines() if line.strip()]


def blocks() -> list[Block]:
    """Every fenced block that is no directive."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in _FENCE.finditer(text):
            marker, _, language, code = match.groups()
            place = text.count("\n", 0, match.start(3)) + 1
            found.append(Block(str(page.relative_to(ROOT)), place, marker or "", language.strip(), code))
    return found


def in_a_notebook(block: Block) -> bool:
    """Whether it is a cell of a page that the build of the documentation executes."""
    head = (ROOT / block.page).read_text(encoding="utf-8").startswith("---\nfile_format: mystnb\n")
    return block.language == "{code-cell}" and head


def in_ci(block: Block) -> bool:
    """Whether ``.ci/run`` runs it in an environment of its own, or runs its very lines as parts of such a block."""
    ci = (ROOT / ".ci/run").read_text(encoding="utf-8") + (ROOT / ".ci/released.py").read_text(encoding="utf-8")
    run = [b for b in blocks() if b.marker and (f"readme_line {b.marker}" in ci or f'block("{b.marker}"' in ci)]
    parts = {part.strip() for one in run for line in one.lines for part in line.split("&&")}
    return block in run or all(part.strip() in parts for line in block.lines for part in line.split("&&"))
