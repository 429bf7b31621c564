import pytest
from PIL import Image

from lavit.data.concepts import CATEGORIES
from lavit.data.stamps import CATEGORY_BY_PATH, StampSource, category_of, join_stamps, label_of


@pytest.mark.parametrize(
    ("sentence", "label"),
    [
        ("A zebu.", "zebu"),
        ("An “Adelaide” Rosella.", "adelaide rosella"),
        ("Mercury—the planet closest to the Sun.", "mercury"),
        ("King. Can move one step in any direction. Protect him!", "king"),
        ("An albino peahen (a female peafowl, or peacock).", "albino peahen"),
        ("A boxcar is used to carry livestock.", "boxcar"),
        ("A knight’s helmet.", "knight's helmet"),
        ("Roast turkey is traditionally eaten on Thanksgiving.", "roast turkey"),
        ("A US 1 cent piece ($.01) called a penny.", "us 1 cent piece"),
        ("Another tombstone.", "tombstone"),
        ("This gun last saw service during World War 2.", ""),
        ("– Because a brain is a terrible thing to waste…", ""),
        ("", ""),
    ],
)
def test_the_name_in_a_sentence(sentence, label):
    assert label_of(sentence) == label


def test_categories_are_the_nine_and_the_longest_path_counts():
    assert set(CATEGORY_BY_PATH.values()) == set(CATEGORIES)
    paths = ["animals/birds/owl", "symbols/money/us/coins/010dime", "symbols/money/00_symbols/euro", "town/flags/red",
             "military/vehicles/f22", "seasonal/halloween/bat_left", "new/folder"]  # fmt: skip
    assert [category_of(path) for path in paths] == [
        "animals", "objects", "symbols", "flags", "travel", "animals", "objects",
    ]  # fmt: skip


def test_join(tmp_path):
    texts = {
        "household/tools/hammer": "A hammer.\nde.utf8=Ein Hammer.\n",
        "household/tools/hammer_mirror": "A hammer.",
        "symbols/alphabets/english/a": "The letter a.",
        "military/apc": "A tough APC like this fighting vehicle gets you to any battle you like.",
        "food/mystery": None,
    }
    for path, text in texts.items():
        file = tmp_path / f"{path}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(file)
        if text is not None:
            file.with_suffix(".txt").write_text(text, encoding="utf-8")
    (tmp_path / "food" / "pear.svg").touch()
    examples, skips = join_stamps(tmp_path, StampSource())
    assert [(example.key, example.caption) for example in examples] == [
        ("stamps-household-tools-hammer", "objects: hammer")
    ]
    meta = examples[0].meta
    assert meta["concept"] == "hammer" and meta["sentence"] == "A hammer." and meta["licence"] == "GPL-2.0-or-later"
    assert meta["tags"] == ["household", "tools"] and meta["language"] == "en"
    assert {skip.name.split("/")[-1]: skip.reason.split(":")[0] for skip in skips} == {
        "hammer_mirror.png": "a mirrored, flipped or muted copy",
        "apc.png": "its sentence names no single thing",
        "mystery.png": "no English sentence",
    }
    letters, _ = join_stamps(tmp_path, StampSource(leave_out=["household", "military", "food"]))
    assert [example.caption for example in letters] == ["symbols: letter a"]
