"""The package as users get it: run by a fresh environment's Python in an empty folder, it tries what the README shows.

    python .ci/released.py CHECKOUT DIST

checks the metadata and sizes of what lies in DIST, then runs the README's example and each command of captum-norm.
"""

import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from importlib.metadata import metadata, version
from pathlib import Path

MOST_BYTES = 20_000_000
COMMANDS = """
--version
compare|A delightful, warm film.|--json|compare.json|--figure|compare.pdf
compare|A warm film.|A dull one.|--methods|AttentionNorm|DecompX
view|A warm film.|-o|maps.html
maps|A warm film.|--heads|all|--figure|maps.svg|--save|maps.safetensors|--csv|maps.csv
tokens|--text|text.txt|--max-sequences|2
align|--layer|0
certify|--json|certify.json
"""


def main(checkout: Path, dist: Path) -> None:
    """Everything in turn; the first thing that is wrong ends it."""
    import captum_norm

    installed = Path(captum_norm.__file__).parent
    assert "site-packages" in installed.parts, f"{installed} is not the installed package"
    check_files(installed, dist)
    Path("text.txt").write_text("A warm film, delightful!\nThe plot is thin.\n", encoding="utf-8")
    sys.path.insert(0, str(checkout / ".ci"))
    from readme import block

    run(sys.executable, "-c", block("example", (checkout / "README.md").read_text(encoding="utf-8")))
    for line in COMMANDS.strip().splitlines():
        run(str(Path(sys.executable).parent / "captum-norm"), *line.split("|"))
    for made in ("weight_beside_norm.png", "compare.json", "compare.pdf", "maps.html", "maps.svg", "maps.csv"):
        assert Path(made).stat().st_size > 1000, f"{made} was not written"


def check_files(installed: Path, dist: Path) -> None:
    """Types, licence, version and sizes; what trained the models stays out of the wheel."""
    assert (installed / "py.typed").is_file()
    assert (installed / "functional" / "overshoot.c").is_file()
    assert metadata("captum-norm")["License-Expression"] == "BSD-3-Clause"
    [wheel], [source] = dist.glob("*.whl"), dist.glob("*.tar.gz")
    for archive in (wheel, source):
        assert f"-{version('captum-norm')}" in archive.name
        assert archive.stat().st_size < MOST_BYTES, f"{archive.name} has {archive.stat().st_size / 1e6:.0f} MB"
    in_wheel = zipfile.ZipFile(wheel).namelist()
    assert any(name.endswith("licenses/LICENSE") for name in in_wheel)
    assert not [name for name in in_wheel if name.startswith(("tests/", "captum_norm/models/training/"))]
    with tarfile.open(source) as packed:
        assert any(name.endswith("/pyproject.toml") for name in packed.getnames())


def run(*command: str) -> None:
    """A command that has to succeed."""
    print("+", *command[:4], flush=True)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    checkout, dist = (Path(given).resolve() for given in sys.argv[1:])
    with tempfile.TemporaryDirectory() as empty:
        os.chdir(empty)
        main(checkout, dist)
