import pytest

from lavit.benchmarks.files import OfficialFile, SetFolder, named
from tests.benchmarks.official import write

FILES = {"list": ("a.json", "annotations/a.json"), "images": ("images", ".")}


def opened(folder):
    return SetFolder(folder, "Things", "https://things.org", FILES)


def test_first_place_that_exists_is_read(tmp_path):
    write(tmp_path, {"annotations/a.json": [1]})
    assert opened(tmp_path).read("list").path == tmp_path / "annotations" / "a.json"
    write(tmp_path, {"a.json": [2]})
    assert opened(tmp_path).read("list").content == [2]


@pytest.mark.parametrize("content", [b"", b'{"a": ', b"\xff\xfe\x00", b"[" * 100_000])
def test_what_is_no_json_is_named(content, tmp_path):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match="a.json is not valid JSON .*; get it anew from https://things.org"):
        opened(tmp_path).read("list")


def test_keys_that_stand_twice(tmp_path):
    (tmp_path / "a.json").write_text('{"1": 0, "2": 0, "1": 0}')
    assert opened(tmp_path).read("list").content == {"1": 0, "2": 0}
    with pytest.raises(ValueError, match="the key '1' stands twice"):
        opened(tmp_path).read("list", ids_as_keys=True)


def test_taking_what_is_missing_or_of_another_kind(tmp_path):
    file = OfficialFile(tmp_path / "a.json", None, "https://things.org")
    assert file.take({"id": 3}, "id", int) == 3
    for entry, text in [
        ({}, r"images\[2\].id is missing, unlike the official file; get it anew from https://things.org"),
        ({"id": "3"}, r"images\[2\].id is '3' and not a whole number"),
        ({"id": True}, r"images\[2\].id is True and not a whole number"),
        ({"id": None}, r"images\[2\].id is None and not a whole number"),
        (["id"], r"images\[2\] is \['id'\] and no object"),
    ]:
        with pytest.raises(ValueError, match=text):
            file.take(entry, "id", int, "images", 2)
    with pytest.raises(ValueError, match="the file is None and no object"):
        file.take(None, "images", list)
    with pytest.raises(ValueError, match=r"data\[0\] holds 3 and not text alone"):
        file.texts(["a", 3], "data", 0)


def test_pictures_are_looked_for_where_most_of_them_are(tmp_path):
    write(tmp_path, {}, ("images/1.jpg", "2.jpg", "3.jpg", "val/4.jpg"))
    assert opened(tmp_path).images(["3.jpg", "2.jpg", "3.jpg"]) == {n: tmp_path / n for n in ("3.jpg", "2.jpg")}
    assert opened(tmp_path).images(["val/4.jpg"]) == {"val/4.jpg": tmp_path / "val/4.jpg"}
    assert opened(tmp_path).images([]) == {}
    with pytest.raises(
        ValueError, match="Things: 2 of 4 images are missing, the first is .*9.jpg; get them from https"
    ):
        opened(tmp_path).images(["2.jpg", "9.jpg", "8.jpg", "3.jpg"])
    with pytest.raises(ValueError, match="1 of 1 images are missing, the first is .*images/val/1.jpg"):
        opened(tmp_path).images(["val/1.jpg"])


@pytest.mark.parametrize("name", ["../1.jpg", "val/../../1.jpg", "/etc/passwd", "/1.jpg", "..", "val/", ""])
def test_a_picture_lies_in_the_folder(name, tmp_path):
    with pytest.raises(ValueError, match="is no picture's name"):
        opened(tmp_path).images([name])


def test_few_of_many_are_named():
    assert named([1, "b"]) == "1, 'b'"
    assert named(range(10)) == "0, 1, 2 and 7 more"
