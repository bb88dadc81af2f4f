"""``python -m captum_norm`` is the command ``captum-norm``."""

import sys

from captum_norm.cli import main

if __name__ == "__main__":
    sys.exit(main())
