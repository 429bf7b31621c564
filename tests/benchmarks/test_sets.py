import hashlib
import json

import pytest

from lavit.benchmarks.sets import SETS, read_benchmark
from tests.benchmarks.official import WRITERS

SPLITS = [(name, split) for name, info in SETS.items() for split in info.splits]


def change(path, edit):
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("name, split", SPLITS)
def test_every_split_is_read_with_its_pictures(name, split, tmp_path):
    benchmark = read_benchmark(name, WRITERS[name](tmp_path), split)
    assert (benchmark.name, benchmark.split, benchmark.task) == (name, split, SETS[name].task)
    assert benchmark.items and len({item.id for item in benchmark.items}) == len(benchmark.items)
    for item in benchmark.items:
        assert item.image is None or item.image.is_file()
        assert (item.question is None) == (benchmark.task == "caption")
        assert bool(item.references) == (split not in ("test-dev", "test2015") and (name, split) not in
                                         {("nocaps", "test"), ("vizwiz", "test"), ("textvqa", "test")})  # fmt: skip


@pytest.mark.parametrize("name", SETS)
def test_what_is_known_of_a_set(name, tmp_path):
    info = SETS[name]
    assert info.task in ("caption", "question") and info.metric in ("caption", "vqa", "gqa", "vizwiz", "choice")
    assert set(info.counts) == set(info.splits) and all(count > 0 for count in info.counts.values())
    benchmark = read_benchmark(name, str(WRITERS[name](tmp_path)))
    assert benchmark.split == info.default
    assert all(item.references for item in benchmark.items)


def test_wrong_set_split_or_folder(tmp_path):
    with pytest.raises(ValueError, match="no set is called 'coco'; choose coco_captions, nocaps"):
        read_benchmark("coco", tmp_path)
    with pytest.raises(ValueError, match="GQA has no split 'test'; choose testdev, val"):
        read_benchmark("gqa", tmp_path, "test")
    with pytest.raises(ValueError, match="NoCaps: there is no folder .*none; unpack .*nocaps.org"):
        read_benchmark("nocaps", tmp_path / "none")


@pytest.mark.parametrize("name", SETS)
def test_a_missing_file_is_named_with_where_to_get_it(name, tmp_path):
    with pytest.raises(ValueError) as error:
        read_benchmark(name, tmp_path)
    role = (
        "splits" if name == "scienceqa" else "questions" if "questions" in SETS[name].files[SETS[name].default] else ""
    )
    first = SETS[name].files[SETS[name].default][role or "captions"][0]
    assert str(error.value).startswith(f"{SETS[name].title}: no file {tmp_path / first}")
    assert SETS[name].where in str(error.value)


def test_an_empty_split_and_an_id_that_stands_twice(tmp_path):
    change(WRITERS["flickr30k"](tmp_path) / "dataset_flickr30k.json", lambda file: file["images"].pop())
    with pytest.raises(ValueError, match="Flickr30k.* has nothing in split val"):
        read_benchmark("flickr30k", tmp_path, "val")
    path = tmp_path / "TextVQA_0.5.1_val.json"
    WRITERS["textvqa"](tmp_path)
    change(path, lambda file: file["data"].extend(file["data"]))
    with pytest.raises(ValueError, match="TextVQA in .* has the id 34602 twice"):
        read_benchmark("textvqa", tmp_path)
    change(path, lambda file: file["data"].clear())
    with pytest.raises(ValueError, match="TextVQA in .* has nothing in split val"):
        read_benchmark("textvqa", tmp_path)


def test_digest_is_of_the_annotation_files(tmp_path):
    folder = WRITERS["okvqa"](tmp_path)
    names = "OpenEnded_mscoco_val2014_questions.json", "mscoco_val2014_annotations.json"
    content = b"".join((folder / name).read_bytes() for name in names)
    digest = hashlib.sha256(content).hexdigest()
    assert read_benchmark("okvqa", folder).digest == digest
    (folder / names[1]).write_bytes((folder / names[1]).read_bytes() + b"\n")
    assert read_benchmark("okvqa", folder).digest != digest
