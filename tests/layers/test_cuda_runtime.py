from __future__ import annotations

import ctypes
import importlib.util

import pytest

from lavit.layers import cuda_runtime


def fail(name: str) -> None:
    raise ModuleNotFoundError(name)


@pytest.mark.parametrize("found", [lambda name: None, fail])
def test_absent_package_gives_none(monkeypatch, found):
    monkeypatch.setattr(importlib.util, "find_spec", found)
    assert cuda_runtime.preload() is None


def test_library_is_loaded_by_its_path_and_for_everyone(monkeypatch, tmp_path):
    (tmp_path / "lib").mkdir()
    spec = importlib.util.spec_from_loader("runtime", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    calls = []
    monkeypatch.setattr(ctypes, "CDLL", lambda path, mode: calls.append((path, mode)))
    assert cuda_runtime.preload() is None and not calls
    library = tmp_path / "lib" / "libcudart.so.12"
    library.touch()
    assert cuda_runtime.preload() == library
    assert calls == [(str(library), ctypes.RTLD_GLOBAL)]
