import json
import shutil

import numpy as np
import pytest
from PIL import Image

from lavit.config import load
from lavit.data import sources
from lavit.data.assets import AssetError, AssetUnavailable
from lavit.data.examples import Example, SourceError, safe_key
from lavit.data.folders import FolderSource, Img2datasetSource
from lavit.data.images import open_image
from lavit.data.prepare import DataConfig, prepare
from lavit.data.shards import ShardError, Shards, read_index
from lavit.data.sources import Source, cap, fetch_source, read_source, source_assets
from lavit.data.split import SplitConfig, assign_split
from lavit.data.stamps import StampSource
from lavit.data.vqa import EasyVqaSource, VqaV2Files, VqaV2Source
from lavit.data.writing import SplitWriter
from tokenizer.prepare import require_splits

COLOURS = [(40 * i % 256, 90 * i % 256, 17 * i % 256) for i in range(12)]


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "images"
    path.mkdir()
    for i, colour in enumerate(COLOURS):
        Image.new("RGB", (40, 20), colour).save(path / f"{i:02}.png")
        (path / f"{i:02}.txt").write_text(f"thing number{i}")
    return path


def config_of(folder, **changes) -> DataConfig:
    split = SplitConfig(validation=0.25, test=0.25)
    return DataConfig(**{"sources": [Source(folder=FolderSource(str(folder)))], "split": split, **changes})


def test_shards_by_concept(folder, tmp_path):
    seen = []
    index = prepare(config_of(folder, image_size=16), tmp_path / "run", lambda *args: seen.append(args))["captions"]
    assert sum(index["counts"].values()) == 12 and index["counts"]["train"] == index["sources"]["folder"]["train"]
    assert min(index["counts"].values()) > 0 and seen[-1] == (12, 12, "captions")
    for split in ("train", "validation", "test"):
        shards = Shards(tmp_path / "run" / "captions", split)
        assert len(shards) == index["counts"][split]
        for i in range(len(shards)):
            sample = shards[i]
            image = open_image(sample.file, sample.key)
            number = int(sample.caption.removeprefix("thing number"))
            assert image.size == (16, 8) and np.asarray(image)[3, 5].tolist() == list(COLOURS[number])
            assert sample.meta["split"] == split == assign_split(sample.meta["concept"], 0, 0.25, 0.25)


def test_training_pictures_have_copies_that_are_alike_and_stay_the_same(folder, tmp_path):
    plain = prepare(config_of(folder), tmp_path / "plain")["captions"]
    index = prepare(config_of(folder, copies=2), tmp_path / "run")["captions"]
    train = plain["counts"]["train"]
    assert index["counts"] == {**plain["counts"], "train": 3 * train} and index["concepts"] == plain["concepts"]
    shards = Shards(tmp_path / "run" / "captions", "train")
    by_caption = {}
    for sample in (shards[i] for i in range(len(shards))):
        by_caption.setdefault(sample.caption, []).append(sample)
    assert len(by_caption) == train
    for first, *others in by_caption.values():
        assert [sample.meta.get("copy") for sample in (first, *others)] == [None, 1, 2]
        original, *moved = (np.asarray(open_image(s.file, s.key)).astype(int) for s in (first, *others))
        assert all(copy.shape == original.shape and (copy[10, 20] == original[10, 20]).all() for copy in moved)
        assert not np.array_equal(original, moved[0]) and not np.array_equal(moved[0], moved[1])
    again = prepare(config_of(folder, copies=2), tmp_path / "again")["captions"]
    assert again["shards"] == index["shards"]
    assert "copies" not in plain["config"], "what was prepared before there were copies stays as it is"
    with pytest.raises(ShardError, match="copies"):
        prepare(config_of(folder), tmp_path / "run")
    with pytest.raises(ValueError, match=r"data\.copies is -1"):
        prepare(config_of(folder, copies=-1), tmp_path / "wrong")


def test_done_is_kept_and_another_config_is_refused(folder, tmp_path):
    run = tmp_path / "run"
    first = prepare(config_of(folder), run)
    made = {path: path.stat().st_mtime_ns for path in (run / "captions").iterdir()}
    again = prepare(config_of(folder), run)
    assert again == json.loads(json.dumps(first)) and made == {p: p.stat().st_mtime_ns for p in made}
    with pytest.raises(ShardError, match=r"captions was made from another config \(changed: image_size\); remove it"):
        prepare(config_of(folder, image_size=64), run)
    with pytest.raises(ShardError, match="changed: sources.0.folder.licence"):
        prepare(config_of(folder, sources=[Source(folder=FolderSource(str(folder), licence="MIT"))]), run)
    (run / "captions" / "index.json").unlink()
    with pytest.raises(ShardError, match="was not finished"):
        prepare(config_of(folder), run)


def test_the_same_bytes_twice(folder, tmp_path):
    indices = [prepare(config_of(folder), tmp_path / name)["captions"] for name in ("one", "two")]
    assert indices[0]["shards"] == indices[1]["shards"]


def test_bad_items_are_counted_and_named(folder, tmp_path):
    (folder / "03.png").write_bytes(b"no picture")
    (folder / "04.png").write_bytes((folder / "04.png").read_bytes()[:40])
    (folder / "05.txt").write_text("")
    (folder / "12.txt").write_text("a caption alone")
    # The other of the pair may lie in another split; then the reason says which.
    shutil.copy(folder / "06.png", folder / "07.png")
    index = prepare(config_of(folder), tmp_path / "run")["captions"]
    assert sum(index["counts"].values()) == 8 and len(index["skipped"]) == 5
    skipped = dict(read_index(tmp_path / "run" / "captions")["skipped"])
    assert skipped["05.png"] == "empty caption" and skipped["07.png"].startswith("the same picture as folder-06_png")
    assert "it is none of PNG" in skipped["03.png"] and "cannot be decoded" in skipped["04.png"]


def test_one_picture_is_never_in_two_splits(folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    for path in other.glob("*.txt"):
        path.write_text(f"another name of {path.stem}")
    chosen = [Source(folder=FolderSource(str(folder), split="train", name="a"))]
    chosen += [Source(folder=FolderSource(str(other), split="test", name="b"))]
    said = "all 12 examples were left out; the first: 00.png: the same picture as a-00_"
    with pytest.raises(SourceError, match=said):
        prepare(config_of(folder, sources=chosen), tmp_path / "run")
    chosen[1].folder.split = "train"
    index = prepare(config_of(folder, sources=chosen), tmp_path / "styles")["captions"]
    reasons = {reason for _, reason in index["skipped"]}
    assert index["sources"]["b"]["train"] > 0, "the same picture in another style and the same split may stay"
    assert all("split" in reason for reason in reasons)


def test_a_question_s_picture_is_not_tested_where_captions_trained_on_it(folder, tmp_path):
    """Also when the captions were written in an earlier call."""
    (tmp_path / "q.json").write_text(
        json.dumps({"questions": [{"question_id": i, "image_id": i, "question": "what?"} for i in range(12)]})
    )
    files = VqaV2Files(str(folder), str(tmp_path / "q.json"))
    config = config_of(folder)
    captions = prepare(config, tmp_path / "run")["captions"]["counts"]
    config.vqa = Source(vqav2=VqaV2Source(train=files, test=files))
    index = prepare(config, tmp_path / "run")["vqa"]
    assert index["counts"]["test"] == captions["test"] > 0
    assert index["counts"]["train"] <= captions["train"] and index["skipped"]
    assert all("which is in the" in reason for _, reason in index["skipped"])


def test_nothing_left_is_an_error_and_leaves_nothing(folder, tmp_path):
    for i in range(12):
        (folder / f"{i:02}.png").write_bytes(b"")
    with pytest.raises(SourceError, match=r"source 'folder': all 12 examples were left out; the first: 00.png.* empty"):
        prepare(config_of(folder), tmp_path / "run")
    assert not (tmp_path / "run" / "captions").exists() and not (tmp_path / "run" / "captions.partial").exists()


@pytest.mark.parametrize(
    ("test", "message"),
    [
        (["ball"], r"captions has \{.*'test': 1.*\} examples; each split needs some, test two"),
        (["ball", "ball", "ball"], "all pictures of test are captioned 'ball'; two captions are needed: add some"),
        (["ball", "ball", "cone"], None),
    ],
)
def test_evaluations_need_two_captions(tmp_path, test, message):
    with SplitWriter(tmp_path / "captions", 2) as writer:
        for number, caption in enumerate(["cup", "cup", *test]):
            split = ("train", "validation", *["test"] * len(test))[number]
            writer.write(split, str(number), b"image", caption, {})
        writer.finish({"config": {}, "counts": {"train": 1, "validation": 1, "test": len(test)}})
    (tmp_path / "vqa").mkdir()
    enough = {"counts": {"train": 1, "validation": 1, "test": 2}}
    indices = {"captions": read_index(tmp_path / "captions"), "vqa": enough}
    if message is None:
        require_splits(indices, tmp_path)
        assert len(Shards(tmp_path / "captions", "test")) == 3
        with pytest.raises(ValueError, match="each split needs some, test and validation two"):
            require_splits(indices, tmp_path, "validation")
        return
    with pytest.raises(ValueError, match=message):
        require_splits(indices, tmp_path)
    # The next attempt writes them anew, and what would have been left out of the questions because of them.
    assert not (tmp_path / "captions").exists() and not (tmp_path / "vqa").exists()


def test_an_official_split_wins(folder, tmp_path):
    for split in ("test", "validation"):
        chosen = [Source(folder=FolderSource(str(folder), split=split, name="a"))]
        with pytest.raises(SourceError, match="none of the 12 examples is in the train split"):
            prepare(config_of(folder, sources=chosen), tmp_path / split)
    chosen = [Source(folder=FolderSource(str(folder), split="train"))]
    index = prepare(config_of(folder, sources=chosen), tmp_path / "train")["captions"]
    assert index["counts"]["test"] == 0 and index["counts"]["validation"] > 0


def test_a_cap_takes_one_of_each_concept_first(folder, tmp_path):
    examples = [Example(str(i), bytes, "", {"concept": "abc"[i % 3]}) for i in range(9)]
    assert [example.meta["concept"] for example in cap(examples, 3, 0)] == ["a", "b", "c"]
    assert [example.key for example in cap(examples, 6, 0)] == ["0", "1", "2", "3", "4", "5"]
    assert cap(examples, 9, 0) == cap(examples, None, 0) == examples
    single = {cap(examples, 1, seed)[0].key for seed in range(20)}
    assert len(single) > 1 and cap(examples, 1, 3) == cap(examples, 1, 3)
    index = prepare(config_of(folder, max_images=6, split=SplitConfig(0.0, 0.0)), tmp_path / "run")["captions"]
    assert index["counts"] == {"train": 6, "validation": 0, "test": 0}


def test_questions_go_their_own_way(folder, tmp_path):
    questions = [{"question_id": i, "image_id": i, "question": "what?"} for i in range(12)]
    (tmp_path / "q.json").write_text(json.dumps({"questions": questions}))
    vqa = Source(vqav2=VqaV2Source(train=VqaV2Files(str(folder), str(tmp_path / "q.json"))))
    indices = prepare(config_of(folder, vqa=vqa), tmp_path / "run")
    assert set(indices) == {"captions", "vqa"}
    sample = Shards(tmp_path / "run" / "vqa", "train")[0]
    assert sample.caption == "" and sample.meta["questions"][0]["question"] == "what?"
    with pytest.raises(SourceError, match=r"data.sources: source 'vqav2' has questions; it belongs in data.vqa"):
        prepare(config_of(folder, sources=[vqa]), tmp_path / "other")
    with pytest.raises(SourceError, match=r"data.vqa: source 'folder' has captions; it belongs in data.sources"):
        prepare(config_of(folder, sources=[], vqa=Source(folder=FolderSource(str(folder)))), tmp_path / "third")


def test_our_own_shards_are_a_source_again(folder, tmp_path):
    first = prepare(config_of(folder), tmp_path / "run")["captions"]
    again = config_of(folder, sources=[Source(img2dataset=Img2datasetSource(str(tmp_path / "run" / "captions")))])
    assert prepare(again, tmp_path / "again")["captions"]["counts"] == first["counts"]


def test_an_optional_source_is_skipped_only_where_it_cannot_be_had(monkeypatch, caplog):
    def unavailable(name):
        raise AssetUnavailable("this machine has no apt-get")

    def offline(name):
        raise AssetError("check the network")

    needed, optional = Source(stamps=StampSource()), Source(stamps=StampSource(optional=True))
    monkeypatch.setattr("lavit.data.stamps.fetch", unavailable)
    monkeypatch.setattr(sources, "fetch", unavailable)
    fetch_source(optional)
    reading = read_source(optional)
    assert reading.examples == [] and reading.skips == [("source stamps", "this machine has no apt-get")]
    assert "going on without the optional source 'stamps'" in caplog.text
    for act in (fetch_source, read_source):
        with pytest.raises(AssetUnavailable):
            act(needed)
    monkeypatch.setattr("lavit.data.stamps.fetch", offline)
    with pytest.raises(AssetError, match="check the network"):
        read_source(optional)


def test_which_assets_a_source_needs():
    config = load(DataConfig, overrides=["vqa.easy_vqa={}"])
    assert config.vqa == Source(easy_vqa=EasyVqaSource()) and source_assets(config.vqa) == ["easy-vqa"]
    assert source_assets(Source(stamps=StampSource())) == ["stamps"]
    assert source_assets(Source(folder=FolderSource("x"))) == []


def test_the_config_from_yaml(tmp_path):
    (tmp_path / "c.yaml").write_text(
        "sources: [{emoji: {style: twitter}}, {stamps: {optional: true}}, {folder: {path: p, captions: c.csv}}]\n"
        "vqa: {vqav2: {train: {images: i, questions: q}}}\nsplit: {test: 0.2}\nmax_images: 5\n"
    )
    config = load(DataConfig, tmp_path / "c.yaml")
    assert config.sources[0].emoji.style == "twitter" and config.sources[1].stamps == StampSource(optional=True)
    assert config.vqa.vqav2.train == VqaV2Files("i", "q") and config.split == SplitConfig(test=0.2)
    assert config.max_images == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 0}, "data.image_size is 0; it must be at least 8"),
        ({"samples_per_shard": 0}, "data.samples_per_shard is 0"),
        ({"max_images": 0}, "data.max_images is 0"),
        ({"quality": 101}, "data.quality is 101"),
        ({"sources": []}, "data.sources is empty"),
        ({"split": SplitConfig(0.5, 0.6)}, "sum to less than 1"),
    ],
)
def test_impossible_settings(folder, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        prepare(config_of(folder, **changes), tmp_path / "run")


def test_lossy_pictures_are_smaller(tmp_path):
    path = tmp_path / "noise"
    path.mkdir()
    for i in range(2):
        pixels = np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path / f"{i}.png")
        (path / f"{i}.txt").write_text(f"noise{i}")
    sizes = {}
    for quality in (100, 50):
        prepare(config_of(path, quality=quality, split=SplitConfig(0, 0)), tmp_path / str(quality))
        sizes[quality] = len(Shards(tmp_path / str(quality) / "captions").file(0))
    assert sizes[50] < sizes[100]


def test_too_little_disk(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10})())
    with pytest.raises(ValueError, match="are free"):
        prepare(config_of(folder), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_keys_fit_a_tar():
    assert safe_key("a dir/b.c é.png") == "a_dir/b_c_é_png" and safe_key("/..") == "__"
    long = [safe_key("ü" * 200 + end) for end in "ab"]
    assert len(set(long)) == 2 and all(len(key.encode()) <= 88 for key in long)


@pytest.mark.network
def test_the_real_sources(tmp_path):
    config = load(DataConfig, overrides=["vqa.easy_vqa={}", "max_images=40"])
    config.sources = [Source(emoji=sources.EmojiSource(style)) for style in ("google", "twitter")]
    indices = prepare(config, tmp_path)
    assert sum(indices["captions"]["counts"].values()) == 80 and indices["vqa"]["counts"]["test"] > 0
    shards = Shards(tmp_path / "captions")
    captions = {shards.describe(i)[0].partition(": ")[0] for i in range(len(shards))}
    assert len(captions) >= 6
    assert open_image(shards.file(0), "first").size == (64, 64)
