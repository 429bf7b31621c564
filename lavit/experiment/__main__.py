"""What a run checks before it makes anything: ``python -m lavit.experiment CONFIG [key=value ...]``."""

from __future__ import annotations

import sys

from lavit.experiment import load_experiment

if __name__ == "__main__":
    try:
        load_experiment(sys.argv[1], sys.argv[2:])
    except ValueError as mistake:
        raise SystemExit(f"error: {mistake}") from None
