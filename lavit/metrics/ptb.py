"""Penn-Treebank tokenization of captions, twice: by Stanford's Java tokenizer and by our own Python one.

Caption metrics are defined over the words of `edu.stanford.nlp.process.PTBTokenizer -lowerCase`, less a list of
punctuation (the COCO caption evaluation, arXiv 1504.00325). pycocoevalcap carries the jar and the list; the jar needs
Java. `python_words` is for machines without it: written from what the jar was seen to do, and compared with it on
209,196 English texts of 5 to 25 words (definitions and examples of WordNet, names and sentences of clip art, fortune
cookies, documentation of Python packages): it differed in 6, of code and of random keys. HTML entities but the
commonest, emoticons and made-up words with signs inside are known to differ.

Both keep what the official evaluation keeps, even its oddity: a parenthesis stays as the word `-lrb-`, because the
list of punctuation is in capitals and the words are not.
"""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from pathlib import Path

from pycocoevalcap.tokenizer import ptbtokenizer

REMOVED = frozenset(ptbtokenizer.PUNCTUATIONS)
JAR = Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)

# A line between any two captions. Whether "b." ends a sentence depends on the word after it, across the line break:
# without the guard a caption's words would depend on which caption happens to come next.
GUARD = "The"


@functools.cache
def java_runs() -> bool:
    """Whether `java` is on the path and starts (macOS has a `java` that only asks for an installation)."""
    if shutil.which("java") is None:
        return False
    return subprocess.run(["java", "-version"], capture_output=True).returncode == 0


def java_words(captions: list[str]) -> list[list[str]]:
    """The words of each caption by the Java tokenizer: one process for all of them.

    pycocoevalcap's own wrapper is not called: it writes a file into the installed package, takes the encoding from
    the locale and goes on when Java fails. Errors: RuntimeError when Java fails or answers with other lines.
    """
    if not captions:
        return []
    # "\n" must not occur inside a caption, nor any other sign that Java takes for the end of a line.
    lines = [line for caption in captions for line in (" ".join(caption.split()), GUARD)]
    command = ["java", "-Dfile.encoding=UTF-8", "-cp", str(JAR), "edu.stanford.nlp.process.PTBTokenizer"]
    done = subprocess.run(
        [*command, "-preserveLines", "-lowerCase"],
        input=("\n".join(lines) + "\n").encode("utf-8", "replace"),
        capture_output=True,
    )
    if done.returncode != 0:
        raise RuntimeError(f"the Java PTB tokenizer failed ({done.returncode}): {done.stderr.decode()[-500:]}")
    found = done.stdout.decode("utf-8").removesuffix("\n").split("\n")
    if len(found) != len(lines) or any(line != GUARD.lower() for line in found[1::2]):
        raise RuntimeError(f"the Java PTB tokenizer answered {len(found)} lines to {len(lines)}; use 'ptb-python'")
    return [[word for word in line.split(" ") if word and word not in REMOVED] for line in found[::2]]


# The Python tokenizer is one regular expression: of its alternatives the first that matches at a place wins.
LETTER = r"(?:[^\W\d_¼-¾⅓⅔²³¹⁰-⁹₀-₉]|[\u0300-\u036f])"  # or an accent; not superscripts and fractions
ALNUM = rf"(?:{LETTER}|\d)"
APOSTROPHE = "['’]"
# Words whose full stop is theirs wherever they stand; only when capitalised; only before a number.
ABBREVIATIONS = """adj adm adv al ala apr ariz assn assoc asst atty attys aug ave bancorp bhd bldg blvd brig
    bros calif capt cf cie cmdr co col colo comdr conn corp cos cpl ct dak dec dept det dr drs elec ens esq est etc
    ext feb fla fri ft ga gen gov govs hon inc ind intl invt jan jos jr jul jun kan kans ky lieut lt ltd maj mar md
    messrs mfg mich minn mlle mme mo mon mont mr mrs ms msgr mt mtg natl neb nev nov oct okla penn pfc ph ph.d plc
    pres prof profs pte pty pvt rd rep reps rev rt sen sens sep sept seq sfc sgt spc sq sr st ste supt supts sys tel
    tenn thu thurs tue tues univ va vs vt wed wis wisc wm wyo"""
CAPITALISED = "Ark Az Del Ill La Mass Miss Ore Pa Tex Wash"
NUMBERED = "ca no nos fig figs pp p art op prop"
# After "b." these begin a sentence, so the full stop is not the letter's.
SENTENCE_STARTS = """The A An It He She They We You This That These In At But If When As There Here What So Then Now Her
    Our Their One Some Many Other Such However Since While After According About Yet Once"""


# Words whose parts Java joins by a space that does not break.
TELEPHONE = r"(?:\(\d{2,3}\) ?|\+{0,2}(?:\d{2,4}[- ])?\d{2,4}[- ])\d{3,4}[- ]?\d{3,5}"
FRACTION = r"\d{1,4}[- ]\d{1,4}/\d{1,4}"
TAG = r"""</?[A-Za-z][\w:.-]*(?: +[A-Za-z][\w:.-]*(?: *= *"[^"]*")?)* */?>"""  # <b>
JOINED = re.compile(f"{TELEPHONE}|{FRACTION}|{TAG}")


def _alternatives() -> list[str]:
    letter, alnum, q = LETTER, ALNUM, APOSTROPHE

    def any_of(words: str) -> str:
        return "(?:" + "|".join(re.escape(word) for word in sorted(words.split(), key=len, reverse=True)) + ")"

    enclitic = rf"(?i:{q}(?:(?:d|m|re|ve|ll)(?!{alnum})|s(?!{letter})|em|n(?!\S)))"
    end = rf"(?!{alnum}|[-/]|{q})"
    slashed = rf"{alnum}+(?:-[A-Za-z]+){{0,2}}"
    return [
        r"(?<!\S)(?!(?i:cannot|gimme|lemme|gonna|wanna|gotta)\b)[A-Za-z]+(?!\S)",  # most words, at once
        r"""(?i:(?:https?://|www\.)[^\s"<>|(){}]+[^\s"<>|(){}.!?,-])""",
        r"""(?:[a-z]+\.)+(?:com|net|org|edu)(?:/[^\s"<>|()]+[^\s"<>|(){}.!?,-])?(?![A-Za-z0-9])""",
        r"""<?[^\s"|()<>@]+@[^\s"|()<>@.]+(?:\.[^\s"|()<>@.]+)*>?""",  # an address, with the comma that follows it
        rf"[@#]{letter}(?:{alnum}|_)*",  # @user, #tag
        TAG,
        r">?[:;=]['-]?[()DPOp\[\]|3](?![A-Za-z0-9])|\([-^x=~<>'][_.-]?[-^x=~<>']\)",  # :-)
        rf"(?:{TELEPHONE})(?![A-Za-z0-9-])",
        # before a word: rock 'n' roll, the '60s, '99, 'tis, 'cause; after it: man 's
        rf"(?i:{q}n{q}|(?<!\d){q}(?:\d0s|\d\d(?=\s|$))|'t(?=is\b|was\b|isn't)|{q}(?:cause|till?)(?!{alnum}))",
        enclitic,
        # full stops that belong to the word
        r"[A-Za-z0-9][A-Za-z0-9.,]*[.,](?:[A-Za-z0-9]+)?(?:-(?:(?:[A-Za-z]\.){2,}|[A-Za-z0-9]+))+",  # a...well-meant
        rf"(?:[A-Za-z]\.){{2,}}(?!{alnum})",  # U.S., p.m.
        rf"{alnum}+(?:-{alnum}+)*-(?:[A-Za-z]\.){{2,}}(?:-{alnum}+)*",  # anti-U.S., non-U.S.-made
        rf"(?i:{any_of(ABBREVIATIONS)})\.(?!{letter})",
        rf"(?=[A-Z])(?i:{any_of(CAPITALISED)})\.(?!{letter})",
        rf"(?i:{any_of(NUMBERED)})\.(?=\s*\d)",
        rf"[A-Za-z]\.(?!{letter})(?!\s*$)(?!\s+{any_of(SENTENCE_STARTS)}(?:\s|$))",  # J. Smith
        r"\d+(?:\.\d+)*\.[xX](?![A-Za-z0-9])",  # release 1.3.x
        rf"{alnum}+(?:[.-]{alnum}+)*\.(?=[,;:])",  # an abbreviation we do not know
        # words that are two: is n't, can not, gim me, gon na, got ta
        rf"(?i:{letter}+(?=n{q}t(?!{alnum}))|n{q}t(?!{alnum}))",
        rf"(?i:can(?=not{end})|(?:gim|lem)(?=me{end})|(?:gon|wan)(?=na{end})|got(?=ta{end}))",
        # an apostrophe inside a word: elision (o'clock, d'Ivoire, O'Brien), vowels (ma'am, Hawai'i), and a few more
        rf"(?:{alnum}+-)*(?:[dlnoDLNO]{q}|[A-HJ-XZ](?!{enclitic}){q}){letter}{{2,}}(?:-{alnum}+)*",
        rf"(?i:{letter}+[aeiou]{q}[aeiou]{letter}*)",
        r"(?i:nor'easter|c'mon|d'oh|s'mores|c'est|qu'est|nat'l|cap'n|li'l|e'er|ev'ry|cont'd\.|somethin'|dunkin')",
        rf"(?i:(?:ol|d)'(?!{alnum})|[dlj](?!{enclitic}){q}|y(?!{enclitic}){q}(?={letter}))",  # ol' man, y' all
        rf"{letter}{alnum}*(?:\.{letter}{alnum}*)+",  # cat.dog, file.txt
        rf"{letter}+(?:[?!]{letter}{alnum}*)+",  # Wow!Really?Yes
        FRACTION,  # 1-1/2
        rf"(?:(?<!{alnum})|[-+])\d+(?:[.,:]\d+)+",  # 1,000, 12:30
        r"[-+]?[.,:]\d+(?:[.,:]\d+)*|[-+]\d+",
        rf"(?:US|A|C|HK|NZ)\$|[A-Z]+(?:[&+][A-Z]+)+|[CF]\+\+|[CF]#(?!{alnum})",
        r"(?i:anti|pro)-(?![A-Za-z0-9-])",  # the pro- and anti-war side
        rf"{slashed}(?:/{slashed}){{1,2}}|{alnum}+(?:[-_]{alnum}+)*",  # and/or, cat, red-haired
        r"[?!]{2,}|-{5,}|-+|\.+|\*+|_+|#+|@+|<{1,2}|>{1,2}",
        r"\S",
    ]


TOKEN = re.compile("|".join(_alternatives()))
SPELLINGS = str.maketrans(
    {
        **dict.fromkeys("‘‛‹›", " ` "),
        **dict.fromkeys("“”«»", ' " '),
        **dict.fromkeys("–—", " - "),
        **dict.fromkeys("\x82\x84\x91\x92\x93\x94\x8b\x9b\x95\x96\x97\x85", " "),  # quotes and dashes of Windows
        **{"…": " ... ", "\x80": "$", "¢": " cents ", "£": "#", "€": "$", "\u00ad": ""},
    }
)
ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&nbsp;": " "}
# What Java deletes: control characters, joiners and selectors, newer currencies, all outside the basic plane (emoji).
DELETED = re.compile(
    "[\x00-\x1f\x7f-\x9f\u200b-\u200d\u2060\ufe0f\ufeff\ufffd\u20e3\u20b9\u20bd\ue000-\uf8ff\U00010000-\U0010ffff]"
)
WRITTEN = str.maketrans(
    {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
    | {"½": "1/2", "¼": "1/4", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"}
)
DROPPED = re.compile(r"""-{1,4}|\.+|[?!,:;'’"`]""")  # our spellings of what Java writes as one of REMOVED
ENDING = re.compile("(n?)’(s|d|m|re|ve|ll|t)")


def python_words(caption: str) -> list[str]:
    """The words of one caption, without Java: lower case, less the removed punctuation."""
    for entity, sign in ENTITIES.items():
        caption = caption.replace(entity, sign)
    text = " ".join(DELETED.sub(" ", caption.translate(SPELLINGS)).split())
    words = []
    for token in TOKEN.findall(text):
        # Java makes a curly apostrophe straight in an ending (man’s) and leaves it elsewhere (o’clock).
        ending = ENDING.fullmatch(token.lower())
        word = f"{ending[1]}'{ending[2]}" if ending else token.lower().translate(WRITTEN)
        if JOINED.fullmatch(token):
            word = word.replace(" ", "\u00a0")
        words += [part for part in word.split(" ") if part and not DROPPED.fullmatch(part)]
    return words
