import pytest

from lavit.benchmarks.sets import read_benchmark
from tests.benchmarks.official import coco, flickr30k, nocaps
from tests.benchmarks.test_sets import change


def test_coco_by_karpathys_split(tmp_path):
    folder = coco(tmp_path)
    (item,) = read_benchmark("coco_captions", folder).items
    assert (item.id, item.question, item.about) == (391895, None, {})
    assert item.references == ("A man. ", "Ein Mann")
    assert item.image == folder / "val2014" / "COCO_val2014_000000391895.jpg"


def test_cocos_restval_belongs_to_training(tmp_path):
    folder = coco(tmp_path)
    assert [item.id for item in read_benchmark("coco_captions", folder, "train").items] == [42, 9]
    assert [item.id for item in read_benchmark("coco_captions", folder, "val").items] == [60623]


def test_pictures_of_other_splits_may_be_missing(tmp_path):
    folder = coco(tmp_path)
    (folder / "train2014" / "COCO_train2014_000000000009.jpg").unlink()
    assert len(read_benchmark("coco_captions", folder).items) == 1
    with pytest.raises(ValueError, match="1 of 2 images are missing, the first is .*COCO_train2014_000000000009.jpg"):
        read_benchmark("coco_captions", folder, "train")


def test_flickr30k(tmp_path):
    (item,) = read_benchmark("flickr30k", flickr30k(tmp_path)).items
    assert (item.id, item.references, item.image.name) == (1, ("caption 1",), "1007129816.jpg")


@pytest.mark.parametrize("key, value, text", [
    ("cocoid", "391895", r"images\[0\].cocoid is '391895' and not a whole number"),
    ("filepath", None, r"images\[0\].filepath is None and not text"),
    ("sentences", [], r"images\[0\] has no sentence"),
    ("sentences", [{"tokens": []}], r"images\[0\].sentences.raw is missing"),
])  # fmt: skip
def test_altered_splits(key, value, text, tmp_path):
    folder = coco(tmp_path)
    change(folder / "dataset_coco.json", lambda file: file["images"][0].update({key: value}))
    with pytest.raises(ValueError, match=text):
        read_benchmark("coco_captions", folder)


def test_nocaps_has_domains_and_captions_in_any_order(tmp_path):
    items = read_benchmark("nocaps", nocaps(tmp_path)).items
    assert [item.id for item in items] == [0, 1, 7]
    assert [item.about["domain"] for item in items] == ["in-domain", "near-domain", "out-domain"]
    assert items[0].references == ("A baby.", "A child") and items[1].references == ("Ein Teich",)
    assert items[2].image == tmp_path / "val" / "00394f0c39e3c18b.jpg"


def test_nocaps_test_has_neither(tmp_path):
    (item,) = read_benchmark("nocaps", nocaps(tmp_path), "test").items
    assert (item.id, item.references, item.about) == (3, (), {})


@pytest.mark.parametrize("edit, text", [
    (lambda f: f["images"][1].update(domain="far"), r"images\[1\].domain is 'far' and none of in-domain"),
    (lambda f: f["images"][1].pop("domain"), r"images\[1\].domain is missing"),
    (lambda f: f.pop("annotations"), "annotations is missing"),
    (lambda f: f["annotations"][0].update(image_id=5), r"annotations\[0\] is of image 5, which is not there"),
    (lambda f: f["annotations"].pop(3), "images 1 have no caption"),
    (lambda f: f["images"].append(f["images"][0]), "has the id 0 twice"),
])  # fmt: skip
def test_altered_nocaps(edit, text, tmp_path):
    change(nocaps(tmp_path) / "nocaps_val_4500_captions.json", edit)
    with pytest.raises(ValueError, match=text):
        read_benchmark("nocaps", tmp_path)
