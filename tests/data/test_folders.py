import csv
import io
import json

import pytest
import webdataset
from PIL import Image

from lavit.data.examples import SourceError
from lavit.data.folders import (
    CocoCaptionsSource,
    FolderSource,
    Img2datasetSource,
    read_coco_captions,
    read_folder,
    read_img2dataset,
)
from lavit.data.shards import ShardError


def png(colour: str = "red", kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (6, 4), colour).save(stream, kind)
    return stream.getvalue()


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    (folder / "sub dir").mkdir(parents=True)
    for name in ("a.png", "b.JPG", "sub dir/c.webp"):
        (folder / name).write_bytes(png())
    (folder / "notes.md").write_text("no picture")
    return folder


def test_captions_beside_the_images(images):
    (images / "a.txt").write_text("  A red\n hammer. ")
    (images / "b.txt").write_text(" \n")
    examples, skips, licences = read_folder(FolderSource(str(images), licence="CC0-1.0", name="mine"))
    assert [(example.key, example.caption) for example in examples] == [("mine-a_png", "A red hammer.")]
    assert examples[0].read() == png() and examples[0].meta["concept"] == "hammer"
    assert examples[0].meta["licence"] == licences["mine"]["licence"] == "CC0-1.0"
    assert skips == [("b.JPG", "empty caption"), ("sub dir/c.webp", "no caption file c.txt beside it")]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_captions_in_one_file(images, tmp_path, kind):
    rows = [
        ("a.png", 'red, "bright"'),
        ("sub dir/c.webp", "blue\nsky"),
        ("gone.png", "x"),
        ("b.JPG", " "),
        ("a.png", "2"),
    ]
    path = tmp_path / f"captions.{kind}"
    with path.open("w", newline="", encoding="utf-8") as stream:
        if kind == "csv":
            csv.writer(stream).writerows([("file", "caption"), *rows])
        else:
            stream.write("\n".join(json.dumps({"file": file, "caption": text}) for file, text in rows) + "\n\n")
    examples, skips, _ = read_folder(FolderSource(str(images), str(path), split="test"))
    assert {example.key: example.caption for example in examples} == {
        "folder-a_png": 'red, "bright"', "folder-sub_dir/c_webp": "blue sky",
    }  # fmt: skip
    assert examples[0].meta["official_split"] == "test"
    assert dict(skips) == {
        "gone.png": f"captions.{kind} has a caption for it but there is no such image",
        "b.JPG": "empty caption",
        "a.png": f"a further caption in captions.{kind}; the first one counts",
    }


def test_a_folder_that_gives_nothing(images, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    listed = tmp_path / "captions.csv"
    listed.write_text("file,caption\nother.png,x\n")
    cases = {
        r"no folder .*gone": FolderSource(str(tmp_path / "gone")),
        r"empty holds no images": FolderSource(str(empty)),
        r"a caption for none of the 3 images": FolderSource(str(images)),
        r"captions.csv has a caption for none": FolderSource(str(images), str(listed)),
        r"no captions file .*none.csv": FolderSource(str(images), str(tmp_path / "none.csv")),
        r"must be a .csv or a .jsonl": FolderSource(str(images), str(images / "notes.md")),
    }
    for message, source in cases.items():
        with pytest.raises(SourceError, match=message):
            read_folder(source)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "name,text\na.png,x\n", "must have 'file' and 'caption'"),
        ("a.jsonl", '{"file": "a.png"}', "must have 'file' and 'caption'"),
        ("a.jsonl", "not json", "cannot be read"),
        ("a.jsonl", "[1]", "must have 'file' and 'caption'"),
    ],
)
def test_a_captions_file_of_another_form(images, tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(SourceError, match=message):
        read_folder(FolderSource(str(images), str(tmp_path / name)))


def test_coco_captions(images, tmp_path):
    content = {
        "images": [
            {"id": 7, "file_name": "a.png"}, {"id": 8, "file_name": "gone.jpg"}, {"id": 9, "file_name": "b.JPG"},
        ],
        "annotations": [
            {"image_id": 7, "caption": "A dog \n runs."}, {"image_id": 7, "caption": "Dog."},
            {"image_id": 8, "caption": "x"}, {"image_id": 9, "caption": " "}, {"image_id": 10, "caption": "no entry"},
        ],
    }  # fmt: skip
    path = tmp_path / "captions.json"
    path.write_text(json.dumps(content))
    examples, skips, _ = read_coco_captions(CocoCaptionsSource(str(images), str(path), split="validation"))
    assert [(example.key, example.caption) for example in examples] == [("coco-000000000007", "A dog runs.")]
    meta = examples[0].meta
    assert meta["captions"] == ["A dog runs.", "Dog."] and meta["official_split"] == "validation"
    assert {skip.name for skip in skips} == {"coco image 8", "coco image 9", "coco image 10"}


@pytest.mark.parametrize("content", ["[]", "{}", "nonsense", '{"images": [], "annotations": [{"image_id": 1}]}'])
def test_other_json_is_not_coco(images, tmp_path, content):
    path = tmp_path / "captions.json"
    path.write_text(content)
    with pytest.raises(SourceError, match="is not a COCO captions file"):
        read_coco_captions(CocoCaptionsSource(str(images), str(path)))


def test_coco_without_its_files(images, tmp_path):
    path = tmp_path / "captions.json"
    with pytest.raises(SourceError, match="no file"):
        read_coco_captions(CocoCaptionsSource(str(images), str(path)))
    path.write_text('{"images": [{"id": 1, "file_name": "z.png"}], "annotations": [{"image_id": 1, "caption": "z"}]}')
    with pytest.raises(SourceError, match="a caption for no image"):
        read_coco_captions(CocoCaptionsSource(str(images), str(path)))


def test_img2dataset_tars(tmp_path):
    with webdataset.TarWriter(str(tmp_path / "00000.tar"), encoder=False) as writer:
        about = json.dumps({"url": "u", "license": "CC-BY"}).encode()
        writer.write({"__key__": "000000001", "jpg": png(kind="JPEG"), "txt": b"A hammer.", "json": about})
        writer.write({"__key__": "000000002", "png": png(), "txt": b"", "json": b"{}"})
    examples, skips, _ = read_img2dataset(Img2datasetSource(str(tmp_path), name="web"))
    assert [(example.key, example.caption) for example in examples] == [("web-000000001", "A hammer.")]
    assert examples[0].read() == png(kind="JPEG")
    meta = examples[0].meta
    assert meta["licence"] == "CC-BY" and meta["concept"] == "hammer" and meta["original"]["url"] == "u"
    assert skips == [("web 000000002", "empty caption")]
    with pytest.raises(ShardError, match="no shard or folder"):
        read_img2dataset(Img2datasetSource(str(tmp_path / "gone")))


def test_pictures_of_one_page_stay_together_in_the_order_of_their_lines(images, tmp_path):
    rows = [("sub dir/c.webp", "second thing", 0), ("a.png", "first thing", " 0"), ("b.JPG", "alone", None)]
    path = tmp_path / "captions.jsonl"
    path.write_text("\n".join(json.dumps(dict(zip(("file", "caption", "page"), row, strict=True))) for row in rows))
    examples, _, _ = read_folder(FolderSource(str(images), str(path), name="mine"))
    assert [example.caption for example in examples] == ["second thing", "first thing", "alone"]
    assert [example.meta.get("page") for example in examples] == ["mine 0", "mine 0", None]
    assert [example.meta["concept"] for example in examples[:2]] == ["page mine 0"] * 2, "one split has them all"
