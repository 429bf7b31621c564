"""Free space, asked for before something long is written."""

from __future__ import annotations

import shutil
from pathlib import Path


class DiskFull(ValueError):
    """Not enough free space for what is about to be written."""


def require_space(folder: Path, needed: int, what: str) -> None:
    """Check that the disk of ``folder`` (which need not exist yet) has ``needed`` bytes free.

    Raises:
        DiskFull: it has less; the message says how much is missing.
    """
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise DiskFull(
            f"{what} needs about {needed / 1e6:.0f} MB in {folder} but its disk has {free / 1e6:.0f} MB free; "
            "free some space or choose a folder on another disk"
        )
