from __future__ import annotations

import gzip
import json

import pytest

from lavit.data.examples import SourceError
from lavit.data.split import SplitConfig
from lavit.data.texts import TextConfig, TextSet, write_texts

SPLIT = SplitConfig(validation=0.3, test=0.3)


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "in" / "deep"
    folder.mkdir(parents=True)
    lines = [{"text": f"line {n} – süß"} for n in range(30)] + [{"text": "  "}]
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    with gzip.open(folder / "b.jsonl.gz", "wt") as file:
        file.write(json.dumps({"text": "packed", "url": "x"}))
    (folder / "c.txt").write_text("\nA whole file.\nIts second line.\n")
    (folder / "d.md").write_text("not read")
    return tmp_path / "in"


def test_every_document_is_in_one_split_and_comes_back(files, tmp_path):
    counts = write_texts(TextConfig([str(files)]), SPLIT, tmp_path / "out")
    sets = {name: TextSet(tmp_path / "out", name) for name in counts}
    assert {name: len(found) for name, found in sets.items()} == counts and min(counts.values()) > 3
    texts = [found.text(number) for found in sets.values() for number in range(len(found))]
    assert sorted(texts) == sorted(
        [*(f"line {n} – süß" for n in range(30)), "packed", "A whole file.\nIts second line."]
    )


def test_a_package_of_text(files, tmp_path, monkeypatch):
    monkeypatch.setattr("lavit.data.texts.fetch", {"novels": files}.__getitem__)
    counts = write_texts(TextConfig(assets=["novels"]), SPLIT, tmp_path / "out")
    assert counts == write_texts(TextConfig([str(files)]), SPLIT, tmp_path / "same") and sum(counts.values()) == 32


def test_what_is_there_is_kept_and_other_paths_are_refused(files, tmp_path):
    config = TextConfig([str(files)])
    counts = write_texts(config, SPLIT, tmp_path / "out")
    (files / "deep" / "a.jsonl").unlink()
    assert write_texts(config, SPLIT, tmp_path / "out") == counts
    with pytest.raises(SourceError, match="was made from another data.text; remove it or choose another run folder"):
        write_texts(TextConfig([str(files / "deep")]), SPLIT, tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"text": "a"}\n{"text": ', r"a.jsonl, line 2 cannot be read .*; mend it or leave it out"),
        ('{"words": "a"}', r"a.jsonl, line 1 cannot be read \('text'\)"),
        ('{"text": "a"}', r"data.text has .* documents; each split needs some"),
    ],
)
def test_broken_text_leaves_nothing(tmp_path, content, said):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(SourceError, match=said):
        write_texts(TextConfig([str(tmp_path / "a.jsonl")]), SPLIT, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_paths_without_text(tmp_path):
    with pytest.raises(SourceError, match="data.text: .*none does not exist"):
        write_texts(TextConfig([str(tmp_path / "none")]), SPLIT, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="empty holds no text"):
        write_texts(TextConfig([str(tmp_path / "empty")]), SPLIT, tmp_path / "out")


def test_a_cut_file_is_found_when_it_is_opened(files, tmp_path):
    write_texts(TextConfig([str(files)]), SPLIT, tmp_path / "out")
    path = tmp_path / "out" / "train.txt"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(SourceError, match="train.txt is cut; remove"):
        TextSet(tmp_path / "out", "train")
