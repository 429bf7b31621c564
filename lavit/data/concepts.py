"""From a name to the thing it names, so that pictures of one thing stay in one split."""

from __future__ import annotations

import re

CATEGORIES = ("smileys", "people", "animals", "food", "travel", "activities", "objects", "symbols", "flags")

_ALIKE = {  # words that tell variants of one thing apart, and the one word that stands for them
    "man": "person", "woman": "person", "adult": "person", "men": "people", "women": "people",
    "boy": "child", "girl": "child", "older": "old", "princess": "prince", "merman": "merperson",
    "mermaid": "merperson", "fireman": "firefighter", "mrs.": "santa", "mx": "santa", "bunny": "rabbit",
    "gravestone": "headstone", "tombstone": "headstone", "beetle": "bug", "ladybug": "lady bug",
}  # fmt: skip
_SAME = {  # whole names of one thing
    "grave marker": "headstone", "cemetery marker": "headstone", "monument stone": "headstone",
    "fire truck": "fire engine", "moon": "full moon", "clock face": "clock", "hibiscus flower": "hibiscus",
    "isle of person": "isle of man", "upside": "upside down",
}  # fmt: skip
_DIRECTIONS = {"left", "right", "up", "down", "leftwards", "rightwards", "upwards", "downwards"}
_LEADING = re.compile(
    r"^(?:(?:an?|the|some|our|another|one|two|three|\d+|big|large|little|small|very|happy|light(?= blue)"
    r"|red|green|blue|yellow|orange|purple|brown|black|white|pink|gr[ea]y|silver|golden|colorful"
    r"|(?:pair|couple|bunch|cluster|string|head|glass) of)\s+)+(?=\S)(?!and\b)"
)
_CLOCK = re.compile(r"o'clock$|-thirty$")
_GROUP = re.compile(r"^(family|kiss|couple with heart)(?::|$)|^(globe showing) ")
_PERSON = re.compile(r"^(?:person|people) (?!in |with |and |of |at |holding )(?=\S)")


def plain(text: str) -> str:
    """Lower case, straight apostrophes, no quotation marks, single blanks."""
    text = text.translate(str.maketrans({"’": "'", "‘": "'", "“": "", "”": "", '"': ""}))
    return " ".join(text.lower().split())


def concept_of(name: str) -> str:
    """The thing that ``name`` names, a stable lower-case text.

    Articles, counts, sizes, colours, gender and directions are dropped: "Red apple" and "a green apple." are both
    ``apple``, "man firefighter" and "firefighter" both ``firefighter``. All clock faces are one thing, and so are all
    families, all kisses and all couples with a heart. A name that is nothing else ("orange") stays itself.
    """
    text = plain(name).strip(" .!?:,")
    if _CLOCK.search(text):
        return "clock"
    group = _GROUP.match(text)
    if group:
        return group[1] or group[2]
    text = _LEADING.sub("", text.removesuffix(": facing right"))
    text = re.sub(r"[\w.']+", lambda word: _ALIKE.get(word[0], word[0]), text)
    text = text.replace("person and person holding", "people holding").replace("person: ", "person with ")
    words = text.replace("-", " ").replace("'", "").split()
    text = " ".join(word for word in words if word not in _DIRECTIONS) or text
    text = _PERSON.sub("", text).removesuffix(" face") or text
    return _SAME.get(text, text)
