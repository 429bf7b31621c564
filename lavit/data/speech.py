"""Tux Paint's spoken captions: what a stamp shows, said in many languages, with the sentence that is said."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from lavit.data.assets import fetch, licence_of
from lavit.data.concepts import concept_of
from lavit.data.examples import Example, Reading, Skip, SourceError, safe_key
from lavit.data.stamps import label_of

MARK = "_desc"  # between a stamp's name and the language of a sound, which English has not


@dataclass
class SpeechSource:
    """The clips of some ``languages`` by their codes: fr, ro, ru, ca and bg have over 900, es 890, en 66."""

    languages: list[str] = field(default_factory=lambda: ["es"])


def read_speech(source: SpeechSource) -> Reading:
    """The spoken sentences, one an example: ``read`` gives the sound file's bytes, ``caption`` is what is said.

    Raises:
        AssetError: the package cannot be fetched (AssetUnavailable where this machine has no apt).
        SourceError: a language in which nothing is said.
    """
    folder = fetch("stamps") / "usr" / "share" / "tuxpaint" / "stamps"
    examples, skips = join_speech(folder, source)
    return Reading(examples, skips, {"stamps": licence_of("stamps")})


def join_speech(folder: Path, source: SpeechSource) -> tuple[list[Example], list[Skip]]:
    """Read the sounds below ``folder`` with the sentence in their language in the ``.txt`` of their stamp.

    All languages and pictures of a thing have one concept, from its English name, and so are in one split.
    """
    examples: list[Example] = []
    skips: list[Skip] = []
    for language in source.languages:
        end = f"{MARK}.ogg" if language == "en" else f"{MARK}_{language}.ogg"
        files = sorted(folder.rglob(f"*{end}"))
        if not files:
            known = sorted({path.stem.rpartition(f"{MARK}_")[2] for path in folder.rglob(f"*{MARK}_*.ogg")})
            raise SourceError(f"nothing is said in '{language}'; there are {', '.join(known)}")
        for file in files:
            path = file.relative_to(folder).as_posix().removesuffix(end)
            sentences = read_sentences(file.with_name(f"{Path(path).name}.txt"))
            if not sentences.get(language):
                skips.append(Skip(f"stamps {path} in {language}", "a sound without its sentence"))
                continue
            named = label_of(sentences.get("en", "")) or Path(path).name
            meta = {
                "source": "stamps",
                "licence": licence_of("stamps")["licence"],
                "language": language,
                "tags": path.split("/")[:-1],
                "group": path.rpartition("/")[0],
                "concept": concept_of(named),
                "style": "stamps",
            }
            key = safe_key(f"speech-{language}-{path.replace('/', '-')}")
            examples.append(Example(key, file.read_bytes, sentences[language], meta))
    return examples, skips


def read_sentences(path: Path) -> dict[str, str]:
    """The sentences of a stamp by language; the first line is English, the others begin with ``xx.utf8=``."""
    if not path.is_file():
        return {}
    first, *lines = path.read_text(encoding="utf-8").splitlines() or [""]
    found = {"en": first.strip()}
    for line in lines:
        name, mark, sentence = line.partition(".utf8=")
        if mark:
            found[name] = sentence.strip()
    return found
