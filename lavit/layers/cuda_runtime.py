"""Loads the CUDA 12 runtime that xFormers' prebuilt extension was linked against.

PyTorch 2.15 brings CUDA 13; xFormers 0.0.35 asks the loader for ``libcudart.so.12``. requirements.txt pins the package
that holds it, and loading it by path first is what makes the extension resolve.
"""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path


def preload() -> Path | None:
    """Load ``libcudart.so.12`` from the installed package; the path, or None where the package is absent."""
    try:
        spec = importlib.util.find_spec("nvidia.cuda_runtime")
    except ModuleNotFoundError:
        return None
    for root in spec.submodule_search_locations if spec else ():
        library = Path(root) / "lib" / "libcudart.so.12"
        if library.is_file():
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
            return library
    return None
