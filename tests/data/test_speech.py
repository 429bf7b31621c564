from __future__ import annotations

import pytest

from lavit.data.audio import as_audio
from lavit.data.examples import SourceError
from lavit.data.speech import SpeechSource, join_speech, read_sentences, read_speech


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "animals"
    place.mkdir()
    (place / "cat.txt").write_text("A red cat.\nes.utf8=Un gato rojo.\nfr.utf8= Un chat. \npt_BR.utf8=Um gato.\n")
    (place / "dog.txt").write_text("A dog.\nfr.utf8=Un chien.\n")
    for name in ("cat_desc_es", "cat_desc_fr", "dog_desc_es", "dog_desc_fr", "cat", "bird_desc_es", "dog_desc"):
        (place / f"{name}.ogg").write_bytes(name.encode())
    return tmp_path


def test_sounds_meet_the_sentence_in_their_language(folder):
    examples, skips = join_speech(folder, SpeechSource(["es", "fr"]))
    assert [(e.caption, e.meta["language"]) for e in examples] == [
        ("Un gato rojo.", "es"), ("Un chat.", "fr"), ("Un chien.", "fr")
    ]  # fmt: skip
    assert examples[0].read() == b"cat_desc_es" and examples[0].key == "speech-es-animals-cat"
    assert [skip.name for skip in skips] == ["stamps animals/bird in es", "stamps animals/dog in es"]
    assert {skip.reason for skip in skips} == {"a sound without its sentence"}


def test_all_languages_of_a_thing_are_one_concept(folder):
    examples, _ = join_speech(folder, SpeechSource(["es", "fr"]))
    assert [e.meta["concept"] for e in examples] == ["cat", "cat", "dog"]


def test_english_sounds_name_no_language(folder):
    (example,), skips = join_speech(folder, SpeechSource(["en"]))
    assert example.caption == "A dog." and example.read() == b"dog_desc" and not skips


def test_a_language_in_which_nothing_is_said(folder):
    with pytest.raises(SourceError, match="nothing is said in 'xx'; there are es, fr"):
        join_speech(folder, SpeechSource(["xx"]))


def test_sentences_of_a_file(folder):
    assert read_sentences(folder / "animals" / "cat.txt")["pt_BR"] == "Um gato."
    assert read_sentences(folder / "gone.txt") == {}
    (folder / "empty.txt").touch()
    assert read_sentences(folder / "empty.txt") == {"en": ""}


@pytest.mark.network
def test_the_packaged_clips_are_sounds():
    reading = read_speech(SpeechSource(["es", "en"]))
    spanish = [e for e in reading.examples if e.meta["language"] == "es"]
    assert len(spanish) > 800 and len({e.key for e in reading.examples}) == len(reading.examples)
    sound = as_audio(spanish[0].read())
    assert 0.3 < len(sound) / 16000 < 16 and float(sound.abs().max()) > 0.01
