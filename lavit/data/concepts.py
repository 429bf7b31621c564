"""From a name to the thing it names, so that pictures of one thing stay in one split."""

from __future__ import annotations

import re

CATEGORIES = ("smileys", "people", "animals", "food", "travel", "activities", "objects", "symbols", "flags")

_ALIKE = {  # words that tell variants of one thing apart, and the one word that stands for them
    "man": "person", "woman": "person", "adult": "person", "men": "people", "women": "people",
    "boy": "child", "girl": "child", "older": "old", "princess": "prince", "merman": "merperson",
    "mermaid": "merperson", "fireman": "firefighter", "mrs.": "santa", "mx": "santa", "grandma's": "old person's",
    "hippopotamus": "hippo",
}  # fmt: skip
_COLOURS = "red|green|blue|yellow|orange|purple|brown|black|white|pink|grey|gray|silver|golden|colorful|light|dark"
_LEADING = re.compile(
    rf"^(?:(?:an?|the|some|our|another|one|two|three|{_COLOURS}|\d+|big|little|small|very|happy"
    r"|(?:pair|couple|bunch|cluster|string|head|glass) of)\s+)+(?=\S)"
)
_CLOCK = re.compile(r"o'clock|-thirty$|^clock face$")
_FACING = re.compile(r"[:,] (?:facing right|(?:medium-)?(?:light|dark)? ?(?:medium)? ?skin tone.*)$|: medium skin tone.*$")
_PERSON = re.compile(r"^(?:person|people) (?!in |with |and |of |at |holding )(?=\S)")
_GROUPS = ("family", "kiss", "couple with heart")


def plain(text: str) -> str:
    """Lower case, straight quotes, single blanks."""
    text = text.translate(str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "\u00a0": " "}))
    return " ".join(text.lower().split())


def concept_of(name: str) -> str:
    """The thing that ``name`` names, a stable lower-case text.

    Articles, counts, colours, gender, skin tone and the direction faced are dropped: "Red apple" and "a green apple."
    are both ``apple``, "man firefighter" and "firefighter" both ``firefighter``. All clock faces are one thing, and so
    are all families, all kisses and all couples with a heart. A name that is nothing else ("orange") stays itself.
    """
    text = plain(name).replace('"', "").strip(" .!?:,")
    if _CLOCK.search(text):
        return "clock"
    group = next((group for group in _GROUPS if text == group or text.startswith(f"{group}:")), None)
    if group:
        return group
    text = _LEADING.sub("", _FACING.sub("", text))
    text = " ".join(_ALIKE.get(word, word) for word in text.split())
    text = text.replace("person and person holding", "people holding").replace("person: ", "person with ")
    return _PERSON.sub("", text)
