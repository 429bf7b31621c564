from __future__ import annotations

import gc
import os

import numpy as np
import pytest
import torch

from lavit.tokenizers.codes import CodeSet, Extracted, PatchCodeSet, pad_codes, write_shard


def pictures(*lengths: int, first: int = 0) -> list[Extracted]:
    """Pictures whose words count on from ``first``."""
    out = []
    for n in lengths:
        words = torch.arange(first, first + n)
        out.append(Extracted(words, torch.stack([2.0 * words, 2.0 * words + 1], dim=1), torch.arange(len(words)) * 3))
        first += n
    return out


def about(keys: list[str], skipped: dict[str, str]) -> dict:
    return {"keys": keys, "skipped": skipped, "made_by": "me"}


@pytest.fixture
def codes(tmp_path) -> CodeSet:
    """Two shards: pictures of two and one words, then of none and three."""
    write_shard(tmp_path / "a", pictures(2, 1), about(["x", "y"], {}), features=True)
    write_shard(tmp_path / "b", pictures(0, 3, first=3), about(["z", "w"], {"z": "it is empty"}), features=True)
    return CodeSet([tmp_path / "a", tmp_path / "b"])


def test_ragged_codes_over_shards(codes):
    assert len(codes) == 4 and codes.counts().tolist() == [2, 1, 0, 3]
    assert [codes.codes(i).tolist() for i in range(4)] == [[0, 1], [2], [], [3, 4, 5]]
    assert codes.codes(0).dtype == torch.int64 and codes.features(0).dtype == torch.float32
    assert codes.features(1).tolist() == [[4, 5]] and codes.features(3)[2].tolist() == [10, 11]
    assert codes.about() == {"keys": ["x", "y", "z", "w"], "skipped": {"z": "it is empty"}}
    for number in (-1, 4):
        with pytest.raises(IndexError):
            codes.codes(number)


def test_codes_are_padded_on_the_right(codes):
    padded, keep = codes.padded(torch.tensor([1, 3]))
    assert padded.tolist() == [[2, 0, 0], [3, 4, 5]] and keep.tolist() == [[True, False, False], [True] * 3]
    assert padded.dtype == torch.int64
    padded, keep = pad_codes([torch.tensor([7]), torch.tensor([8, 9])])
    assert padded[keep].tolist() == [7, 8, 9]


def test_pictures_with_merged_features_or_with_their_patches(codes, tmp_path):
    shown = codes.picture(3)
    assert shown.codes.tolist() == [3, 4, 5] and torch.equal(shown.features(), codes.features(3)) and shown.keep is None
    assert codes.places(3).tolist() == [0, 3, 6] and codes.places(1).tolist() == [0]
    patches = PatchCodeSet([tmp_path / "a", tmp_path / "b"], lambda number: torch.full((7, 2), float(number)), 7)
    shown = patches.picture(3)
    assert shown.codes.tolist() == [3, 4, 5] and torch.equal(shown.features(), torch.full((7, 2), 3.0))
    assert shown.keep.tolist() == [True, False, False, True, False, False, True]
    (tmp_path / "a" / "places.npy").unlink()
    with pytest.raises(ValueError, match="a has no places; remove it and extract again"):
        CodeSet([tmp_path / "a"]).places(0)


def test_features_that_were_not_asked_for(tmp_path):
    write_shard(tmp_path / "a", pictures(2), about(["x"], {}), features=False)
    codes = CodeSet([tmp_path / "a"])
    assert codes.codes(0).tolist() == [0, 1] and not (tmp_path / "a" / "features.npy").exists()
    with pytest.raises(ValueError, match=r"has no features; extract with extraction\.features: true"):
        codes.features(0)


def test_a_shard_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("lavit.tokenizers.codes.write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            write_shard(tmp_path / "a", pictures(2), about(["x"], {}), features=True)
    assert not (tmp_path / "a").exists()
    write_shard(tmp_path / "a", pictures(2), about(["x"], {}), features=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a"], "what was cut is cleared away"


def test_broken_and_missing_shards_are_named(tmp_path, codes):
    with pytest.raises(ValueError, match="no codes .*nothing; run tokenizer.extract first"):
        CodeSet([tmp_path / "a", tmp_path / "nothing"])
    np.save(tmp_path / "b" / "words.npy", np.zeros(2, dtype=np.int32))
    with pytest.raises(ValueError, match="b cannot be read .*3 words are told and 2 are there.*extract again"):
        CodeSet([tmp_path / "a", tmp_path / "b"])
    (tmp_path / "a" / "start.npy").write_bytes(b"no array")
    with pytest.raises(ValueError, match="a cannot be read"):
        CodeSet([tmp_path / "a"])


def test_a_shard_without_pictures(tmp_path):
    write_shard(tmp_path / "a", [], about([], {}), features=True)
    assert len(CodeSet([tmp_path / "a"])) == 0


def test_few_of_many_shards_are_open(tmp_path, monkeypatch):
    monkeypatch.setattr("lavit.tokenizers.codes.OPEN", 1)
    for name in "abcd":
        write_shard(tmp_path / name, pictures(2), about(["x"], {}), features=True)
    before = len(os.listdir("/proc/self/fd"))
    codes = CodeSet([tmp_path / name for name in "abcd"])
    assert len(os.listdir("/proc/self/fd")) == before
    assert [codes.codes(number).tolist() for number in (0, 3, 1)] == [[0, 1]] * 3
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before + 3, "words, places and features of one"
