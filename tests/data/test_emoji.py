import io
import json

import pytest
from PIL import Image

from lavit.data.emoji import EmojiSource, emoji_assets, join_emoji
from lavit.data.examples import SourceError

MESSAGES = {
    "groups": [{"key": key, "order": order} for order, key in enumerate(["people-body", "component", "flags"])],
    "subgroups": [{"key": "person-role", "order": 0}, {"key": "country-flag", "order": 1}],
}
DATA = [
    {"label": "light skin tone", "hexcode": "1F3FB", "group": 1, "subgroup": 0, "version": 1},
    {"label": "regional indicator A", "hexcode": "1F1E6", "version": 0},
    {"label": "Woman Firefighter", "hexcode": "1F469-200D-1F692", "group": 0, "subgroup": 0, "tags": ["fire"],
     "version": 4, "skins": [{"label": "woman firefighter: dark skin tone", "hexcode": "1F469-1F3FF-200D-1F692"}]},
    {"label": "flag: Bouvet Island", "hexcode": "1F1E7-1F1FB", "group": 2, "subgroup": 1, "version": 2, "order": 1},
    {"label": "flag: Norway", "hexcode": "1F1F3-1F1F4", "group": 2, "subgroup": 1, "version": 2, "order": 2},
    {"label": "flag: Sark", "hexcode": "1F1E8-1F1F6", "group": 2, "subgroup": 1, "version": 16, "order": 0},
    {"label": "orca", "hexcode": "1FACD", "group": 0, "subgroup": 0, "version": 17},
]  # fmt: skip


@pytest.fixture
def package(tmp_path):
    english, pictures = tmp_path / "en", tmp_path / "64"
    english.mkdir()
    pictures.mkdir()
    (english / "messages.json").write_text(json.dumps(MESSAGES))
    (english / "data.json").write_text(json.dumps(DATA))
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(stream, "PNG")
    for name in ("1f3fb", "1f1e6", "1f469-200d-1f692", "1f469-1f3ff-200d-1f692", "1f1e7-1f1fb", "1f1f3-1f1f4-fe0f",
                 "1f1e8-1f1f6"):  # fmt: skip
        (pictures / f"{name}.png").write_bytes(stream.getvalue())
    return pictures, english


def test_join_by_code_point(package):
    examples, skips = join_emoji(*package, EmojiSource("twitter"))
    by_caption = {example.caption: example for example in examples}
    assert set(by_caption) == {
        "people: woman firefighter", "flags: norway", "flags: bouvet island", "flags: sark",
    }  # fmt: skip
    woman = by_caption["people: woman firefighter"]
    assert woman.key == "emoji-twitter-1f469-200d-1f692" and woman.read()[1:4] == b"PNG"
    assert woman.meta == {
        "source": "emoji-twitter", "licence": "CC-BY-4.0", "language": "en", "group": "people-body",
        "subgroup": "person-role", "category": "people", "concept": "firefighter", "style": "twitter", "tags": ["fire"],
    }  # fmt: skip
    assert skips == [("emoji-twitter orca", "this style has no picture of it")]


def test_of_one_picture_the_older_then_shorter_name_comes_first(package):
    captions = [example.caption for example in join_emoji(*package, EmojiSource())[0]]
    flags = [caption for caption in captions if caption.startswith("flags")]
    assert flags == ["flags: norway", "flags: bouvet island", "flags: sark"]


def test_skin_tones_are_pictures_of_the_same_concept(package):
    examples, _ = join_emoji(*package, EmojiSource(skin_tones=True))
    people = [example for example in examples if example.meta["category"] == "people"]
    assert [example.caption for example in people] == [
        "people: woman firefighter", "people: woman firefighter: dark skin tone",
    ]  # fmt: skip
    assert {example.meta["concept"] for example in people} == {"firefighter"}


def test_unknown_style():
    assert emoji_assets(EmojiSource("twitter")) == ["emoji-twitter", "emojibase"]
    with pytest.raises(SourceError, match="no emoji style is called 'apple'; there are google, twitter"):
        emoji_assets(EmojiSource("apple"))
