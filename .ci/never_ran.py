"""Which tests were skipped in every run for want of something that could be installed: they would never run at all.

    python .ci/never_ran.py RESULTS.xml ...

reads pytest's JUnit files, prints such tests with their reasons, and ends with 1 if there are any.
"""

import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

MISSING = re.compile(r"could not import|is not installed|no chromium")


def main(files: list[Path]) -> int:
    """The exit code."""
    ran, skipped = set[str](), dict[str, str]()
    for case in (case for file in files for case in ElementTree.parse(file).iter("testcase")):
        name, skip = f"{case.get('classname')}.{case.get('name')}".lstrip("."), case.find("skipped")
        if skip is None:
            ran.add(name)
        else:
            skipped[name] = skip.get("message", "")
    missing = {name: why for name, why in skipped.items() if MISSING.search(why)}
    never = {name: why for name, why in missing.items() if not any(one.startswith(name) for one in ran)}  # or a module
    print("\n".join(f"{name}: {why}" for name, why in never.items()) or f"{len(ran)} tests ran, none was left out.")
    return 1 if never or not ran else 0


if __name__ == "__main__":
    sys.exit(main([Path(given) for given in sys.argv[1:]]))
