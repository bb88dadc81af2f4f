"""All checks on a device, under eight minutes on a GPU; small sizes on a CPU.

    python -m tests.device [--device cuda]
"""

from __future__ import annotations

import argparse
import time

import torch

from tests.device.checks import CHECKS


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    device, failed = parser.parse_args().device, []
    for check in CHECKS:
        start = time.perf_counter()
        try:
            found = check(device)
        except Exception as error:
            failed.append(check.__name__)
            found = {f"FAILED: {type(error).__name__}: {error}": float("nan")}
        print(f"{check.__name__} ({time.perf_counter() - start:.0f} s): {check.__doc__}")
        print("".join(f"    {name:40} {value:.3g}\n" for name, value in found.items()), end="")
    if failed:
        raise SystemExit(f"failed on {device}: {', '.join(failed)}")


if __name__ == "__main__":
    main()
