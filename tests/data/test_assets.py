import hashlib
import io
import json
import tarfile
import threading
import time
import zipfile
from pathlib import Path

import pytest

from lavit.data import assets
from lavit.data.assets import ASSETS, Asset, AssetError, AssetUnavailable, fetch


def tgz(content: bytes = b"hello") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        member = tarfile.TarInfo("package/a.txt")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


class Registry:
    """Stands where the clients are called: hands out one archive, counts calls, fails on demand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, archive: bytes, versions: tuple[str, ...] = ("1.0",)) -> None:
        self.archive, self.calls, self.error, self.delay = archive, [], None, 0.0
        digest = hashlib.sha256(archive).hexdigest()
        asset = Asset("toy", "npm", "toy-package", dict.fromkeys(versions, digest), "MIT", "a toy", 1)
        monkeypatch.setitem(ASSETS, "toy", asset)
        monkeypatch.setattr(assets, "download", self.download)

    def download(self, client: str, package: str, version: str, folder: Path) -> Path:
        self.calls.append((client, package, version))
        time.sleep(self.delay)
        path = folder / "toy.tgz"
        path.write_bytes(self.archive[: len(self.archive) // 2])
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        path.write_bytes(self.archive)
        return path


def visible(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if not path.name.endswith(".lock"))


def test_fetch_unpacks_once_and_records_the_licence(tmp_path, monkeypatch):
    registry = Registry(monkeypatch, tgz())
    folder = fetch("toy", tmp_path)
    assert folder == tmp_path / "toy-1.0" and (folder / "package" / "a.txt").read_bytes() == b"hello"
    assert fetch("toy", tmp_path) == folder
    assert registry.calls == [("npm", "toy-package", "1.0")]
    assert visible(tmp_path) == ["archives", "licences.json", "toy-1.0"]
    assert list((tmp_path / "archives").iterdir()) == []
    licences = json.loads((tmp_path / "licences.json").read_text())
    assert licences["toy"]["licence"] == "MIT" and licences["toy"]["version"] == "1.0"


def test_cache_comes_from_the_environment(tmp_path, monkeypatch):
    Registry(monkeypatch, tgz())
    monkeypatch.setenv("LAVIT_CACHE", str(tmp_path / "deep" / "cache"))
    assert fetch("toy") == tmp_path / "deep" / "cache" / "toy-1.0"


def test_a_wheel_is_unpacked(tmp_path, monkeypatch):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as wheel:
        wheel.writestr("toy/b.txt", "wheel")
    Registry(monkeypatch, stream.getvalue())
    digest = hashlib.sha256(stream.getvalue()).hexdigest()
    monkeypatch.setitem(ASSETS, "toy", Asset("toy", "pip", "toy", {"2": digest}, "MIT", "", 1))
    assert (fetch("toy", tmp_path) / "toy" / "b.txt").read_text() == "wheel"


def test_a_changed_archive_is_refused_and_forgotten(tmp_path, monkeypatch):
    registry = Registry(monkeypatch, tgz())
    registry.archive = tgz(b"other")
    with pytest.raises(AssetError, match=r"toy-package 1.0 from npm has sha256 .* not the recorded"):
        fetch("toy", tmp_path)
    assert visible(tmp_path) == ["archives"] and list((tmp_path / "archives").iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), AssetError("no network")])
def test_an_interrupted_download_is_done_again(tmp_path, monkeypatch, error):
    registry = Registry(monkeypatch, tgz())
    registry.error = error
    with pytest.raises(type(error)):
        fetch("toy", tmp_path)
    assert not (tmp_path / "toy-1.0").exists()
    (tmp_path / ".toy-1.0.killed").mkdir()  # what a killed process leaves
    assert (fetch("toy", tmp_path) / "package" / "a.txt").read_bytes() == b"hello"
    assert visible(tmp_path) == ["archives", "licences.json", "toy-1.0"] and len(registry.calls) == 2


def test_an_interrupted_unpacking_keeps_the_archive(tmp_path, monkeypatch):
    registry = Registry(monkeypatch, tgz())

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(assets, "_unpack", stop)
        with pytest.raises(KeyboardInterrupt):
            fetch("toy", tmp_path)
    assert not (tmp_path / "toy-1.0").exists()
    assert (fetch("toy", tmp_path) / "package" / "a.txt").is_file() and len(registry.calls) == 1


def test_fetches_at_the_same_time_download_once(tmp_path, monkeypatch):
    registry = Registry(monkeypatch, tgz())
    registry.delay = 0.2
    results: list[Path] = []
    threads = [threading.Thread(target=lambda: results.append(fetch("toy", tmp_path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [tmp_path / "toy-1.0"] * 4 and len(registry.calls) == 1


def test_the_next_recorded_version_is_tried(tmp_path, monkeypatch):
    registry = Registry(monkeypatch, tgz(), versions=("2.0", "1.0"))
    registry.error = AssetUnavailable("npm offers no toy-package 2.0 here")
    assert fetch("toy", tmp_path).name == "toy-1.0"
    assert [version for _, _, version in registry.calls] == ["2.0", "1.0"]


def test_unknown_asset_and_bad_cache(tmp_path, monkeypatch):
    with pytest.raises(AssetError, match="no asset is called 'emojis'; there are emoji-google"):
        fetch("emojis", tmp_path)
    Registry(monkeypatch, tgz())
    (tmp_path / "file").touch()
    with pytest.raises(AssetError, match="set LAVIT_CACHE"):
        fetch("toy", tmp_path / "file" / "cache")


def test_too_little_disk_is_said_before_the_download(tmp_path, monkeypatch):
    registry = Registry(monkeypatch, tgz())
    monkeypatch.setitem(ASSETS, "toy", Asset("toy", "npm", "toy", {"1.0": "0"}, "MIT", "", 10**9))
    with pytest.raises(ValueError, match="are free"):
        fetch("toy", tmp_path)
    assert registry.calls == []


def test_every_recorded_digest_is_a_sha256():
    for asset in ASSETS.values():
        assert asset.client in ("pip", "npm", "apt") and asset.versions and asset.licence
        assert all(len(bytes.fromhex(digest)) == 32 for digest in asset.versions.values())


@pytest.mark.network
@pytest.mark.parametrize("name", ["emojibase", "easy-vqa", "lite0-network"])
def test_the_real_small_assets(tmp_path, name):
    folder = fetch(name, tmp_path)
    assert any(path.is_file() for path in folder.rglob("*"))
