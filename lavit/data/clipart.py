"""Debian's collection of the Open Clip Art Library: drawings by hundreds of people, each with a title."""

from __future__ import annotations

import html
import io
import re
import struct
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image, ImageChops

from lavit.data.assets import fetch, licence_of
from lavit.data.clipart_names import CATEGORY_BY_PATH, FOREIGN, LEFT_OUT, RENAMED, RENAMED_FLAGS
from lavit.data.concepts import plain
from lavit.data.examples import Example, Reading, Skip, named_drawing
from lavit.data.images import ImageError, open_image

_MOST_PIXELS = 4_000_000
_MOST_ASPECT = 3  # longer side by shorter side
_LEAST_DRAWN = 0.01  # share of pixels that are not white
_MOST_ALIKE = 6  # pictures of one folder with one label: there are 36 smileys
_LONGEST_LABEL = 5  # words; a longer one is a sentence about the picture
# Titles of a whole collection; then the file name says what it is.
_COLLECTION = re.compile(
    r"clipart by |various cliparts|(?:svg )?road signs|r1\d |aiga_symbol_signs|australian maps|homes clipart|\d\d_"
    r"|etiquette icons|pc connectors|chess pieces|sallite|map symbols|moons|balloons-aj|diner menu|$",
    re.IGNORECASE,
)
_CLIPART_BY = re.compile(r"^clipart by .*? - (?=.* - |[A-Z])")
_REMARK = re.compile(r"\([^)]*\)|[,:|].*|\bin svg format\b", re.IGNORECASE)
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_STYLE = re.compile(  # how it is drawn, by whom
    r"\b(?:simple|styli[sz]ed|generic|cartoon|contour|outline|etiquette|illustration|silhouett?e?|clip ?art|sketch|b w"
    r"|bw|colou?r|aiga|ganson|zazou|aj|md|rpswb|svg|icon|symbol|drawn|yet another)\b"
)
_FLAG = re.compile(r"\b(?:the )?(?:national |official )*flags?(?: of)?\b(?: the\b)?")
_LEADING = re.compile(r"^(?:(?:an?|the|my|some|another|with|of|for) )+(?=\w)|\s(?:with|of|for|and)$")


@dataclass
class ClipartSource:
    """The Open Clip Art Library's drawings, without its stars, icons, playing cards, patterns and signs.

    Args:
        optional: go on without them, with a warning, on a machine that has no apt or not this version.
    """

    optional: bool = False


def read_clipart(source: ClipartSource) -> Reading:
    """The drawings, captioned ``category: label``, the label being what the picture's title names.

    Raises:
        AssetError: the package cannot be fetched (AssetUnavailable where this machine has no apt).
    """
    folder = fetch("clipart") / "usr" / "share" / "openclipart" / "png"
    examples, skips = join_clipart(folder)
    return Reading(examples, skips, {"clipart": licence_of("clipart")})


def join_clipart(folder: Path) -> tuple[list[Example], list[Skip]]:
    """Read the PNGs below ``folder``, each with the title and the author that it holds."""
    examples: list[Example] = []
    skips: list[Skip] = []
    alike: Counter[tuple[str, str]] = Counter()
    for file in sorted(folder.rglob("*.png")):
        if file.is_symlink():  # a picture in its second folder
            continue
        path = file.relative_to(folder).with_suffix("").as_posix()
        name = f"clipart {path}.png"
        reason = next((why for beginning, why in LEFT_OUT.items() if path.startswith(beginning)), None)
        if reason:
            skips.append(Skip(name, reason))
            continue
        width, height = _size(file)
        if width * height > _MOST_PIXELS:
            skips.append(Skip(name, f"{width}x{height} pixels, over {_MOST_PIXELS // 10**6} megapixels"))
            continue
        with Image.open(file) as image:  # decodes nothing yet
            title, author = image.info.get("Title", "").strip(), image.info.get("Author", "")
        category, label = caption_of(path, title, author)
        place = (path.rpartition("/")[0], label)
        if not label:
            skips.append(Skip(name, f"its title names no single thing: {title or file.stem}"))
        elif alike[place] == _MOST_ALIKE:
            skips.append(Skip(name, f"one more '{label}' in a folder with {_MOST_ALIKE}"))
        else:
            alike[place] += 1
            read = partial(read_drawing, file)
            examples.append(named_drawing("clipart", path, category, label, read, title=title))
    return examples, skips


def caption_of(path: str, title: str, author: str = "") -> tuple[str, str]:
    """Category and label of a picture, both empty where neither title nor file name names a thing.

    Args:
        path: where it is in the collection, without suffix.
        title: what its author called it, possibly a collection's name or empty.
    """
    flag = "/flags" in path
    text = _CLIPART_BY.sub("", title) if flag else title
    if _COLLECTION.match(text):
        text = path.rpartition("/")[2]
    text = _REMARK.sub(" ", html.unescape(text))
    text = text.split(" - ")[-1 if flag else 0]
    text = plain(re.sub(r"[-_#\d./!?\"]+", " ", _CAMEL.sub(" ", text))).replace("&", "and")
    text = " ".join(_STYLE.sub(" ", text).split()) or text
    text = re.sub(r"^usa ", "", _FLAG.sub(" ", text).strip()) if flag else text
    label = _LEADING.sub("", " ".join(text.split()))
    label = (RENAMED_FLAGS if flag else RENAMED).get(label, "" if FOREIGN.search(author) else label)
    category, _, label = label.rpartition(": ")
    if len(label) < 2 or not label.isascii() or len(label.split()) > _LONGEST_LABEL:
        return "", ""
    return category or category_of(path), label


def category_of(path: str) -> str:
    """The class word of a picture by its path in the collection."""
    fits = [beginning for beginning in CATEGORY_BY_PATH if path.startswith(beginning)]
    return CATEGORY_BY_PATH[max(fits, key=len)] if fits else "objects"


def read_drawing(file: Path) -> bytes:
    """The picture as PNG, cut to what is drawn: many are small on a page of A4.

    Raises:
        ImageError: it is nearly empty or more than three times as long as wide.
        OSError: it cannot be decoded.
    """
    with Image.open(file) as image:
        box = image.convert("RGBA").getchannel("A").getbbox()
    drawing = open_image(file, file.name).crop(box)
    width, height = drawing.size
    changed = ImageChops.difference(drawing, Image.new("RGB", drawing.size, "white")).convert("L")
    drawn = sum(changed.histogram()[8:])
    if box is None or drawn < _LEAST_DRAWN * width * height:
        raise ImageError(f"image '{file.name}' is nearly empty")
    if max(width, height) > _MOST_ASPECT * min(width, height):
        raise ImageError(
            f"image '{file.name}' has {width}x{height} pixels, one side over {_MOST_ASPECT} times the other"
        )
    stream = io.BytesIO()
    drawing.save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def _size(file: Path) -> tuple[int, int]:
    """Width and height in a PNG's header; Pillow refuses to open the largest."""
    with file.open("rb") as stream:
        return struct.unpack(">16xII", stream.read(24))
