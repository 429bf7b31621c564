import pytest

from lavit.data.concepts import concept_of, plain


@pytest.mark.parametrize(
    ("names", "concept"),
    [
        (["man firefighter", "woman firefighter", "firefighter", "A fireman."], "firefighter"),
        (["one o’clock", "twelve-thirty", "A clock face."], "clock"),
        (["family: man, woman, boy", "family", "family: adult, child"], "family"),
        (["kiss", "kiss: man, man"], "kiss"),
        (["couple with heart", "couple with heart: woman, man"], "couple with heart"),
        (["men holding hands", "woman and man holding hands", "people holding hands"], "people holding hands"),
        (["man: beard", "person: beard", "woman: beard"], "person with beard"),
        (["person running: facing right", "man running", "woman running"], "running"),
        (["red heart", "light blue heart", "heart"], "heart"),
        (["A hammer.", "hammer"], "hammer"),
        (["“Red” apple", "A green apple.", "apple"], "apple"),
        (["up arrow", "down-left arrow", "“Arrow”."], "arrow"),
        (["boy", "girl", "child"], "child"),
        (["dog", "dog face", "A dog."], "dog"),
        (["Mrs. Claus", "Santa Claus."], "santa claus"),
    ],
)
def test_variants_share_a_concept(names, concept):
    assert {concept_of(name) for name in names} == {concept}


def test_different_things_stay_apart():
    names = ["orange", "hammer and pick", "hammer", "mantelpiece clock", "clockwise vertical arrows", "kiss mark",
             "light bulb", "family name", "blue and yellow flag", "isle of man", "face", "man", "baby"]  # fmt: skip
    assert len({concept_of(name) for name in names}) == len(names)


def test_a_name_that_would_vanish_stays():
    assert [concept_of(name) for name in ("Red", "the", "up", "2", "woman")] == ["red", "the", "up", "2", "person"]


def test_plain_text():
    assert plain("  A  “Fuji”\tapple’s ") == "a fuji apple's"
