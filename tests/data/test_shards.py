import io
import json
import multiprocessing
import os
import pickle
import tarfile

import pytest
import webdataset

from lavit.data.shards import ShardError, Shards, read_index
from lavit.data.writing import SplitWriter


def write(folder, count: int = 5, per_shard: int = 2) -> None:
    with SplitWriter(folder, per_shard) as writer:
        for i in range(count):
            writer.write("test" if i == 0 else "train", f"a/é-{i}", f"image{i}".encode(), f"caption {i}", {"n": i})
        writer.finish({"config": {}})


def test_what_is_written_is_read(tmp_path):
    write(tmp_path / "set")
    shards = Shards(tmp_path / "set", "train")
    assert [path.name for path in shards.paths] == ["train-000000.tar", "train-000001.tar"]
    assert len(shards) == 4 and shards.keys == [f"a/é-{i}" for i in (1, 2, 3, 4)]
    assert shards[3] == ("a/é-4", b"image4", "caption 4", {"n": 4})
    assert shards[-1] == shards[3] and shards.describe(0) == ("caption 1", {"n": 1}) and shards.reader(2)() == b"image3"
    assert len(Shards(tmp_path / "set")) == 5
    with pytest.raises(IndexError):
        shards[4]


def test_webdataset_reads_it_too(tmp_path):
    write(tmp_path / "set")
    path = str(tmp_path / "set" / "train-000000.tar")
    samples = list(webdataset.WebDataset(path, shardshuffle=False, empty_check=False))
    assert [sample["__key__"] for sample in samples] == ["a/é-1", "a/é-2"]
    assert samples[0]["webp"] == b"image1" and json.loads(samples[0]["json"]) == {"n": 1}


def test_the_same_samples_give_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        write(tmp_path / name)
    index = read_index(tmp_path / "one")
    assert index == read_index(tmp_path / "two")
    about = index["shards"]["train-000000.tar"]
    assert about["bytes"] == (tmp_path / "one" / "train-000000.tar").stat().st_size and len(about["sha256"]) == 64
    with tarfile.open(tmp_path / "one" / "train-000000.tar") as tar:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in tar} == {(0, 0, 0, "", "")}


def test_a_key_that_is_there_gets_a_number(tmp_path):
    with SplitWriter(tmp_path / "set", 10) as writer:
        for i in range(3):
            writer.write("train", "same", bytes([i]), "", {})
        writer.finish({})
    shards = Shards(tmp_path / "set")
    assert shards.keys == ["same", "same-2", "same-3"] and shards[2].file == b"\x02" and shards[2].caption == ""


def test_an_unfinished_folder_has_no_name(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        with SplitWriter(tmp_path / "set", 10) as writer:
            writer.write("train", "a", b"x", "", {})
            raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "set.partial").mkdir()  # a kill leaves this; the next writer starts from nothing
    (tmp_path / "set.partial" / "train-000009.tar").write_bytes(b"half")
    write(tmp_path / "set", 2)
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == [
        "index.json", "test-000000.places.npz", "test-000000.tar", "train-000000.places.npz", "train-000000.tar",
    ]  # fmt: skip


def image_of(shards: Shards) -> bytes:
    return shards.file(1)


def test_pickled_and_forked(tmp_path):
    write(tmp_path / "set")
    shards = Shards(tmp_path / "set", "train")
    expected = shards.file(1)  # opens a file here
    assert pickle.loads(pickle.dumps(shards)).file(1) == expected
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(image_of, [shards] * 4) == [expected] * 4
    assert shards.file(1) == expected


def test_img2dataset_tars_as_they_are(tmp_path):
    for name, suffix in (("00000", "jpg"), ("00001", "png")):
        with webdataset.TarWriter(str(tmp_path / f"{name}.tar"), encoder=False) as writer:
            writer.write(
                {"__key__": f"{name}7", suffix: suffix.encode(), "txt": "naïve".encode(), "json": b'{"url": 1}'}
            )
    shards = Shards(tmp_path)
    assert shards[0] == ("000007", b"jpg", "naïve", {"url": 1}) and shards[1].file == b"png"
    assert Shards([tmp_path / "00001.tar"]).keys == Shards(tmp_path / "00001.tar").keys == ["000017"]


def test_a_sample_without_a_picture(tmp_path):
    with webdataset.TarWriter(str(tmp_path / "a.tar"), encoder=False) as writer:
        writer.write({"__key__": "k", "txt": b"words"})
    with pytest.raises(ShardError, match=r"sample 'k' has no image \(webp, jpg"):
        Shards(tmp_path / "a.tar")[0]


def test_missing_shards(tmp_path):
    with pytest.raises(ShardError, match="no shards in"):
        Shards(tmp_path)
    with pytest.raises(ShardError, match="no shard or folder .*gone.tar"):
        Shards(tmp_path / "gone.tar")
    with pytest.raises(ShardError, match="has no index.json"):
        read_index(tmp_path)
    write(tmp_path / "set")
    with pytest.raises(ShardError, match="no shards of split 'validation'"):
        Shards(tmp_path / "set", "validation")


def test_a_finished_folder_notices_a_cut_or_missing_shard(tmp_path):
    write(tmp_path / "set")
    path = tmp_path / "set" / "train-000001.tar"
    path.write_bytes(path.read_bytes()[:-512])
    with pytest.raises(ShardError, match=r"train-000001.tar is missing or cut"):
        Shards(tmp_path / "set")
    path.unlink()
    with pytest.raises(ShardError, match=r"train-000001.tar is missing or cut"):
        Shards(tmp_path / "set", "train")


def broken_tars() -> dict[str, bytes]:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in ("a.png", "b.png"):
            member = tarfile.TarInfo(name)
            member.size = 3000
            tar.addfile(member, io.BytesIO(bytes(range(250)) * 12))
    whole = stream.getvalue()
    member = 512 + 3072
    return {
        "cut in data": whole[: member + 1000],
        "cut in a header": whole[: member + 100],
        "cut between members": whole[:member],
        "broken header": whole[:member] + b"\xff" * 512 + whole[member + 512 :],
        "not a tar": b"hello" * 500,
        "empty": b"",
    }


@pytest.mark.parametrize("case", sorted(broken_tars()))
def test_a_broken_tar_is_named(tmp_path, case):
    path = tmp_path / "bad.tar"
    path.write_bytes(broken_tars()[case])
    with pytest.raises(ShardError, match=r"shard .*bad.tar is cut"):
        Shards(path)


def test_a_tar_that_shrinks_while_it_is_open(tmp_path):
    write(tmp_path / "set")
    shards = Shards(tmp_path / "set", "train")
    shards.paths[0].write_bytes(b"")
    with pytest.raises(ShardError, match="was cut while it was read"):
        shards.file(0)


def test_where_samples_lie_is_kept_beside_a_tar(tmp_path):
    write(tmp_path / "set")
    known = Shards(tmp_path / "set")
    kept = sorted((tmp_path / "set").glob("*.places.npz"))
    assert len(kept) == len(known.paths) == 3
    kept[1].unlink()
    scanned = Shards(tmp_path / "set")
    assert known.keys == scanned.keys and [known[i] for i in range(5)] == [scanned[i] for i in range(5)]
    train = tmp_path / "set" / "train-000000.tar"
    whole = train.read_bytes()
    train.write_bytes(whole[:700])
    with pytest.raises(ShardError, match="cut"):
        Shards(train)
    train.write_bytes(whole)
    kept[0].write_bytes(b"PK")
    with pytest.raises(ShardError, match=r"places.npz cannot be read .* remove it, and the tar is scanned instead"):
        Shards(tmp_path / "set")


def test_few_of_many_tars_are_open(tmp_path, monkeypatch):
    monkeypatch.setattr("lavit.data.shards.OPEN", 2)
    write(tmp_path / "set", count=9, per_shard=1)
    shards = Shards(tmp_path / "set")
    before = len(os.listdir("/proc/self/fd"))
    for number in [*range(9), 0, 4, 8]:
        assert shards[number].file == b"image%d" % number
    assert len(os.listdir("/proc/self/fd")) == before + 2
