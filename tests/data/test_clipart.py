import io
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from lavit.data.clipart import ClipartSource, caption_of, category_of, join_clipart, read_clipart, read_drawing
from lavit.data.clipart_names import CATEGORY_BY_PATH, RENAMED, RENAMED_FLAGS
from lavit.data.concepts import CATEGORIES
from lavit.data.images import ImageError


def draw(file: Path, title: str = "", author: str = "", box=(2, 2, 8, 8), size=(10, 10)) -> None:
    """A black rectangle on a transparent page."""
    image = Image.new("RGBA", size)
    if box:
        image.paste("black", box)
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Title", title)
    texts.add_text("Author", author)
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file, pnginfo=texts)


@pytest.mark.parametrize(
    ("path", "title", "author", "caption"),
    [
        ("animals/birds/hen_01", "Hen", "TLarson", ("animals", "hen")),
        ("food/fruit/apple_bw", "Apple (B and W)", "Gerald G.", ("food", "apple")),
        ("food/fruit/pear_simple_bw", "R16 sibmission", "Gerald G.", ("food", "pear")),
        ("tools/leafrake_benji_park_01", "LeafRake", "Benji Park", ("objects", "rake")),
        ("animals/mammals/contour_fox", "Clipart by Nicu Buculei - contour_chipmunk", "Nicu", ("animals", "fox")),
        ("animals/fish/bluewhale-md", "", "", ("animals", "blue whale")),
        ("animals/mammals/bears/orso_architetto_francesc_03", "Orso", "Architetto Rollandin", ("animals", "bear")),
        ("unsorted/anatra", "Various Cliparts", "Architetto Rollandin", ("animals", "duck")),
        ("animals/mostriciattolo", "Mostriciattolo2", "Architetto Rollandin", ("", "")),
        ("signs_and_symbols/flags/asia/syria", "Syrian Arab Republic", "Craig", ("flags", "syria")),
        ("signs_and_symbols/flags/usa_ohio", "Clipart by Rob D - United States - Ohio", "Rob D", ("flags", "ohio")),
        ("signs_and_symbols/flags/israel", "The Official Flag of Israel", "Brian", ("flags", "israel")),
        ("geography/australia_01", "Australia", "Chris Goerner", ("travel", "map of australia")),
        ("animals/birds/tux_01", "Tux", "clemente", ("", "")),
        ("geography/aragon_01", "AragÃ³n", "", ("", "")),
        ("tools/nail", "A very long thing that nobody ever calls so", "", ("", "")),
        ("tools/m_01", "M", "", ("", "")),
    ],
)
def test_the_caption_of_a_title(path, title, author, caption):
    assert caption_of(path, title, author) == caption


def test_categories_are_the_nine_and_the_longest_path_counts():
    assert set(CATEGORY_BY_PATH.values()) == set(CATEGORIES)
    prefixes = {name.rpartition(": ")[0] for name in [*RENAMED.values(), *RENAMED_FLAGS.values()]}
    assert prefixes - {""} <= set(CATEGORIES)
    paths = ["people/ann", "people/smilies/x", "people/clothing/hats/hat", "signs_and_symbols/flags/asia/iran", "new/a"]
    assert [category_of(path) for path in paths] == ["people", "smileys", "objects", "flags", "objects"]


def test_join(tmp_path):
    draw(tmp_path / "food" / "pie_apple.png", "Apple Pie", "Gerald G.")
    draw(tmp_path / "logos" / "kde.png", "KDE")
    draw(tmp_path / "people" / "oh.png", "oh, what have I done to you, dear")
    draw(tmp_path / "people" / "silvia_01.png", "SILVIA")
    for number in range(8):
        draw(tmp_path / "animals" / f"cow_{number}.png", f"Cow {number}")
    (tmp_path / "animals" / "pie.png").symlink_to(tmp_path / "food" / "pie_apple.png")
    # Nothing but a header: a picture this large is not decoded, nor opened.
    header = b"IHDR" + struct.pack(">IIBBBBB", 2001, 2000, 8, 6, 0, 0, 0)
    (tmp_path / "food" / "poster.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    )
    examples, skips = join_clipart(tmp_path)
    assert [example.caption for example in examples] == ["animals: cow"] * 6 + ["food: apple pie"]
    pie = examples[-1]
    assert pie.key == "clipart-food-pie_apple" and Image.open(io.BytesIO(pie.read())).size == (6, 6)
    assert pie.meta["concept"] == "apple pie" and pie.meta["title"] == "Apple Pie"
    assert pie.meta["licence"] == "CC-PDDC" and pie.meta["tags"] == ["food"] and pie.meta["category"] == "food"
    assert {skip.name.removeprefix("clipart "): skip.reason for skip in skips} == {
        "logos/kde.png": "a logo",
        "animals/cow_6.png": "one more 'cow' in a folder with 6",
        "animals/cow_7.png": "one more 'cow' in a folder with 6",
        "food/poster.png": "2001x2000 pixels, over 4 megapixels",
        "people/oh.png": "its title names no single thing: oh, what have I done to you, dear",
        "people/silvia_01.png": "its title names no single thing: SILVIA",
    }


def test_a_drawing_is_cut_out_of_its_page(tmp_path):
    file = tmp_path / "page.png"
    draw(file, box=(20, 30, 50, 45), size=(100, 200))
    drawing = Image.open(io.BytesIO(read_drawing(file)))
    assert drawing.size == (30, 15) and drawing.mode == "RGB" and drawing.getextrema() == ((0, 0),) * 3
    Image.new("RGB", (12, 8), "white").save(file)
    image = Image.open(file)
    image.paste("red", (5, 3, 8, 5))
    image.save(file)
    assert Image.open(io.BytesIO(read_drawing(file))).size == (12, 8)  # a white page is part of it: a flag of Japan


@pytest.mark.parametrize(
    ("box", "message"), [(None, "nearly empty"), ((0, 0, 40, 10), "40x10 pixels, one side over 3 times")]
)
def test_an_empty_or_long_drawing_is_refused(tmp_path, box, message):
    draw(tmp_path / "a.png", box=box, size=(50, 50))
    with pytest.raises(ImageError, match=message):
        read_drawing(tmp_path / "a.png")


@pytest.mark.network
def test_the_real_clipart():
    reading = read_clipart(ClipartSource())
    captions = {example.caption for example in reading.examples}
    assert {"animals: cat", "food: strawberry", "flags: japan"} <= captions and len(reading.examples) > 2000
