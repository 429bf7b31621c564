"""Tux Paint's stamps: clip art and photo cut-outs, each with a sentence."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from lavit.data.assets import fetch, licence_of
from lavit.data.concepts import plain
from lavit.data.examples import Example, Reading, Skip, named_drawing

# The class word of a stamp by the beginning of its path; the longest that fits counts. It follows the emoji's groups:
# plants are with the animals, sky, weather, vehicles and buildings are travel, money and instruments are objects.
CATEGORY_BY_PATH = {
    "animals/": "animals", "animals/mammals/bears/cartoon/": "activities", "animals/mammals/bears/toys/": "activities",
    "clothes/": "objects", "food/": "food", "hobbies/": "objects", "household/": "objects",
    "household/dishes/": "food", "medical/": "objects", "medical/tooth": "people", "military/": "people",
    "military/ammunition/": "objects", "military/vehicles/": "travel", "naturalforces/": "travel",
    "naturalforces/explosion": "smileys", "people/": "people", "people/cartoon/snowman": "travel",
    "people/toys/": "objects", "plants/": "animals", "plants/eggplant": "food", "plants/lettuce": "food",
    "seasonal/": "activities", "seasonal/christmas/Mince": "food", "seasonal/christmas/Roast": "food",
    "seasonal/christmas/Christmas_pudding": "food", "seasonal/christmas/Candy": "food",
    "seasonal/christmas/candy": "food", "seasonal/christmas/hard_candy": "food", "seasonal/christmas/Santa": "people",
    "seasonal/christmas/star": "travel", "seasonal/easter/": "animals", "seasonal/easter/wrapped": "food",
    "seasonal/halloween/": "activities", "seasonal/halloween/bat": "animals", "seasonal/halloween/blackcat": "animals",
    "seasonal/halloween/spider": "animals", "seasonal/halloween/grave": "objects",
    "seasonal/halloween/ghost": "smileys", "seasonal/halloween/skull": "smileys",
    "seasonal/hanukkah/holiday_candle": "objects", "space/": "travel", "space/spacewalk": "people",
    "sports/": "activities", "symbols/": "symbols", "symbols/chess/": "activities", "symbols/faces/": "smileys",
    "symbols/clockface": "travel", "symbols/money/": "objects", "symbols/money/00_symbols/": "symbols",
    "symbols/shapes/hand": "people", "symbols/shapes/pawprint": "animals", "symbols/shapes/star": "travel",
    "symbols/shapes/scream_balloon": "smileys", "symbols/shapes/speech_balloon": "smileys",
    "symbols/shapes/thought_balloon": "smileys", "town/": "travel", "town/flags/": "flags",
    "town/roadsigns/": "symbols", "town/roadsigns/stop": "travel", "town/roadsigns/traffic_cone": "travel",
    "town/uk_post_box": "objects", "town/usps_mailbox": "objects", "vehicles/": "travel",
}  # fmt: skip
_TRANSFORMED = re.compile(r"_(?:mirror|flip|mirror_flip|muted)$")
# A sentence tells more than the name: "Mercury—the planet closest to the Sun.", "A boxcar is used to carry livestock."
_NAME_END = re.compile(
    r"(?<=\w\w)[.!?](?:\s|$)|\s*[—(:]|\s-\s|, (?:also called|from the|a landmark)"
    r"|\s(?:is|are|means|called|carry|carries|stands for|lets|resembles)\s|\straditionally\s"
)
# Sentences that name nothing: "This gun last saw service ...", "Eat your broccoli!"
_NO_NAME = re.compile(
    r"^(?:this|it's|we|with|remember|enter|down|eat|– because|boom|roundabout ahead|police car emblems|an important)\b"
)
_ARTICLE = re.compile(r"^(?:an?|the|some|another) (?=\w)")
_LONGEST_NAME = 8  # words; a longer one is a piece of advice, not a name


@dataclass
class StampSource:
    """Tux Paint's PNG stamps.

    Args:
        optional: go on without them, with a warning, on a machine that has no apt or not this version.
        leave_out: folders of the collection not to read; letters are in hundreds of near-equal pictures.
    """

    optional: bool = False
    leave_out: list[str] = field(default_factory=lambda: ["symbols/alphabets"])


def read_stamps(source: StampSource) -> Reading:
    """The stamps, captioned ``category: label``, the label being the name in the stamp's English sentence.

    Raises:
        AssetError: the package cannot be fetched (AssetUnavailable where this machine has no apt).
    """
    folder = fetch("stamps") / "usr" / "share" / "tuxpaint" / "stamps"
    examples, skips = join_stamps(folder, source)
    return Reading(examples, skips, {"stamps": licence_of("stamps")})


def join_stamps(folder: Path, source: StampSource) -> tuple[list[Example], list[Skip]]:
    """Read the PNGs below ``folder`` with the first line of the ``.txt`` beside each."""
    examples: list[Example] = []
    skips: list[Skip] = []
    for file in sorted(folder.rglob("*.png")):
        path = file.relative_to(folder).with_suffix("").as_posix()
        if any(path.startswith(f"{left_out.rstrip('/')}/") for left_out in source.leave_out):
            continue
        name, text = f"stamps {path}.png", file.with_suffix(".txt")
        if _TRANSFORMED.search(path):
            skips.append(Skip(name, "a mirrored, flipped or muted copy"))
            continue
        sentence = text.read_text(encoding="utf-8").partition("\n")[0].strip() if text.is_file() else ""
        label = label_of(sentence)
        if not sentence:
            skips.append(Skip(name, "no English sentence"))
        elif not label or len(label.split()) > _LONGEST_NAME:
            skips.append(Skip(name, f"its sentence names no single thing: {sentence}"))
        else:
            about = {"category": category_of(path), "label": label, "sentence": sentence}
            examples.append(named_drawing("stamps", path, read=file.read_bytes, **about))
    return examples, skips


def label_of(sentence: str) -> str:
    """The name in a stamp's sentence: its beginning, lower-case, without article, quotes and full stop; "" if none."""
    text = plain(sentence)
    if _NO_NAME.match(text):
        return ""
    end = _NAME_END.search(text)
    name = text[: end.start()] if end and end.start() else text
    return _ARTICLE.sub("", name.strip(" .!?,-–—…"))


def category_of(path: str) -> str:
    """The class word of a stamp by its path in the collection."""
    fits = [beginning for beginning in CATEGORY_BY_PATH if path.startswith(beginning)]
    return CATEGORY_BY_PATH[max(fits, key=len)] if fits else "objects"
