"""The Python tokenization is spelled out here, and compared with the Java one wherever `java` runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import matplotlib
import numpy as np
import PIL
import pytest
import torch

from lavit.metrics import ptb

needs_java = pytest.mark.skipif(not ptb.java_runs(), reason="java does not run here: nothing to compare with")

# Sentence -> words, as the Java tokenizer gives them (test_java_agrees proves it where there is Java).
SPELLED_OUT = {
    "A man riding a wave on top of a surfboard.": "a man riding a wave on top of a surfboard",
    "": "",
    "...": "",
    "The dog's bone isn't here; it's theirs!": "the dog 's bone is n't here it 's theirs",
    "They can't, won't and cannot go": "they ca n't wo n't and can not go",
    "He said \"hello there\" to the 'cat'": "he said hello there to the cat",
    "a red-haired woman — with an e-mail -- and so on...": "a red-haired woman with an e-mail and so on",
    "flag: Bosnia & Herzegovina": "flag bosnia & herzegovina",
    "flag: St. Kitts & Nevis": "flag st. kitts & nevis",
    "flag: U.S. Outlying Islands": "flag u.s. outlying islands",
    "flag: Côte d’Ivoire": "flag côte d’ivoire",
    "woman’s hat at one o’clock": "woman 's hat at one o’clock",
    "O button (blood type)": "o button -lrb- blood type -rrb-",
    "10,000 people, 3.5 m, 50% of $5 at 12:30": "10,000 people 3.5 m 50 % of $ 5 at 12:30",
    "the 1st, 2nd and #1": "the 1st 2nd and # 1",
    "and/or 24/7": "and/or 24/7",
    "The letter b.": "the letter b",
    "plan b. is better": "plan b. is better",
    "keycap: #": "keycap #",
    "Wow!! What?!": "wow !! what ?!",
    "a smile 😀 here": "a smile here",
    "1 1/2 cups": "1\u00a01/2 cups",
    "call (555) 123-4567": "call -lrb-555-rrb-\u00a0123-4567",
}

ALIKE = """
A cat sitting on top of a wooden table next to a laptop computer.
Two people are playing tennis, and one's winning.
The man's hat isn't the dogs' hat; they're ours, we've paid, I'd go, he'll stay.
THE CAT'S TOY. CAN'T STOP, WON'T STOP.
You shouldn't've done that.
I'm gonna say you wanna, gotta, gimme and lemme.
'Tis the season, 'twas the night.
Rock 'n' roll, rock'n'roll, fish 'n chips
Ma'am, it's five o'clock in Hawai'i.
O'Brien's pub, L'Oréal, d'Artagnan and Jeanne d'Arc
Y'all come back, c'mon ol' man!
a jack-o'-lantern for Halloween
a bull's-eye and a cat's-eye
mother-in-law's T-shirt, X-ray and 3-D glasses
the '60s, the 1960's, the 1990s and mid-1990s, class of '99
It’s the knight’s helmet; don’t touch, we’ll see
‘Give Way’ means you have to let other people go first.
“Yield” means you have to “let” other people go first.
Japanese “not free of charge” button
Mercury—the planet closest to the Sun.
Neptune – one of the ‘gas giants’ in our solar system.
Rock-paper-scissors, a two-year-old and a 6-foot man
-- red - green -blue yellow-
wait... what .... yes…no
What? Why!? No!! (Really?)
one; two: three, four. five
a tone,with no space;none at all
Trinidad & Tobago, salt&pepper, R&B, AT&T, Q&A
flag: Hong Kong SAR China
flag: Guinea-Bissau
flag: São Tomé & Príncipe
flag: St. Barthélemy
flag: Åland Islands
flag: Curaçao
flag: Türkiye
flag: South Georgia & South Sandwich Islands
woman: medium-dark skin tone, red hair
family: man, woman, girl, boy
couple with heart: woman, woman, light skin tone
keycap: *
keycap: 10
UP! button and ON! arrow, SOS, NG, COOL!
1st place medal, 2nd, 3rd and 20th-century
12:30 clock, ten-thirty, 10:00:00
5'10" tall, 8.5" x 11", 4x4
1/2 cup, 1 1/2 cups, 2½ cups, 1/2-inch
100%, 50 % and $1,000.50, £5, €10, 5¢
+5 and -5 and 5-6 and 1+1=2
1,000,000 or 1,00 or .5
a 1,000-year-old tree at 12:30pm
50 °F and 5×5 ± 2
Mr. Smith, Mrs. Claus, Dr. Who and Prof. X.
Mt. Fuji on Jan. 5, Washington, D.C. and the U.K.-based team
cat vs. dog, i.e. this, e.g. that, etc.
No. 1 of Figs. 2 is no. He said no.
J. R. R. Tolkien and J.R.R. Tolkien wrote at 5 p.m.
The plan is B. The cat is C.
A, B, C.
vitamin C.
a) first b) second (3) third
[brackets] {curly} ((double)) cat(s)
a smile :-) or :) or ;-)
visit www.foo.com, http://foo.com/bar or foo.com.
mail foo@bar.com, @user and #tag
file.txt and cat.dog
he/she/it w/o a/b
a*b **bold** _under_ a_b ~5 ^ |
C++ and C# and A+
<b>bold</b> and a < b > c
salt &amp; pepper
¡hola! ¿qué?
naïve café, piñata, crème brûlée, smörgåsbord, Ångström
日本語 text and кот
star ★ and heart ♥ and note ♪
tick™ mark® ©2020
m² and H₂O
  two   spaces	and a tab
is there a green shape in the image?
how many shapes are in the image?
The sign for the letter R in American Sign Language.
A candy cane is a traditional Christmas treat in the United States and Australia.
Remember to flush the toilet and wash your hands with soap!
A telephone.  Hello? Hello?
A Canadian dollar ($1.00) called a loonie. It’s named after the bird on the coin—a loon.
Hei stands for halb or half. If the dreidel lands on hei, take half of what’s in the middle plus one.
The painting hangs on a wall, by Wm. Turner. -- Wm.
In the summer of '85, a class of '99 and Fear '72
an experience-W.H.Hudson-like walk, R.W.Emerson-Frederick Harrison, anti-U.S. and non-U.S.-made
it is...light-handed...and a...well-meaning cow; cat,dog-food
pro- and anti-war, pre- and post-war, two- and three-year
Matthew 6:20-49, 12:30-1:30 pm, 6:20-pm
AB+CD=AD, CF&C stole M&Ms at A&W, BB&T Bank
PDP-11/24, OS/VS-2, red-haired/blue-eyed, a 1-2/3 cup
the letter `l' and 'd', B'nai B'rith, Heav'n of Hell, rush'n. Rock'N Roll, somethin' 'till
<control-g> <ron@example.com> <one two... three>
Martin, R-Ill., is red-haired., a dog; pl.n.: noun
Call (511) 338-0959 or (511)338-0959 or 555-1234 now.
release 1.3.x of c.55 at St.5, sales reps. Are 2x., y
see https://example.com/a;b, 'http://example.com/x', example.com/y. 'empty' ('-') 's94'
Really?Yes and Wow!No
""".strip("\n").split("\n")

# Words and plain signs: what is code in the documentation of packages is left out.
PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9 ,;:.?!'\"()&%$/-]*[.?!]")


def documentation(count: int) -> list[str]:
    """Distinct English sentences of 5 to 25 words from the documentation of Python and of packages that are here."""
    found: dict[str, None] = {}
    packages = (np, matplotlib, PIL, torch)  # pinned ones first: Python's own differs from version to version
    folders = [Path(package.__file__).parent for package in packages] + [Path(sysconfig.get_paths()["stdlib"])]
    for path in (path for folder in folders for path in sorted(folder.rglob("*.py"))):
        for text in re.findall(r'"""(.*?)"""', path.read_text("utf-8", "ignore"), re.DOTALL):
            for part in re.split(r"\n\s*\n", text):
                sentences = re.split(r"(?<=[.!?])\s+(?=[A-Z])", " ".join(part.split()))
                found |= dict.fromkeys(s for s in sentences if 5 <= len(s.split()) <= 25 and PLAIN.fullmatch(s))
        if len(found) >= count:
            break
    return list(found)[:count]


@pytest.mark.parametrize("caption", SPELLED_OUT)
def test_python_words(caption):
    assert " ".join(ptb.python_words(caption)) == SPELLED_OUT[caption]


@needs_java
def test_java_agrees_with_the_words_spelled_out():
    captions = list(SPELLED_OUT)
    assert dict(zip(captions, map(" ".join, ptb.java_words(captions)), strict=True)) == SPELLED_OUT


@needs_java
def test_python_equals_java():
    different = [
        (caption, " ".join(java), " ".join(ptb.python_words(caption)))
        for caption, java in zip(ALIKE, ptb.java_words(ALIKE), strict=True)
        if java != ptb.python_words(caption)
    ]
    assert not different


@needs_java
def test_python_equals_java_on_ten_thousand_sentences():
    sentences = documentation(12_000)
    assert len(sentences) == 12_000
    different = [
        (sentence, " ".join(java), " ".join(ours))
        for sentence, java in zip(sentences, ptb.java_words(sentences), strict=True)
        if java != (ours := ptb.python_words(sentence))
    ]
    assert len(different) <= 6, different  # one in two thousand: code that reads like words ("domain::op")


@needs_java
def test_java_words_do_not_depend_on_the_neighbours():
    alone = ptb.java_words(["The letter b."])
    assert ptb.java_words(["The letter b.", "The cat"])[:1] == alone
    assert ptb.java_words(["The letter b.", "cat", "no.", "5"])[:1] == alone
    assert ptb.java_words(["cat\nsat\r\nhere\u2028now", "", "dog"]) == [["cat", "sat", "here", "now"], [], ["dog"]]
    assert ptb.java_words([]) == []


@needs_java
@pytest.mark.skipif(
    not os.access(ptb.JAR.parent, os.W_OK), reason="pycocoevalcap's wrapper writes into its folder, which is read-only"
)
def test_java_equals_the_official_wrapper():
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    # Not those that end in one letter: the wrapper lets the next caption decide about their full stop.
    captions = [caption for caption in ALIKE if caption.isascii() and not re.search(r"\b[A-Za-z]\.$", caption)]
    official = PTBTokenizer().tokenize({i: [{"caption": caption}] for i, caption in enumerate(captions)})
    assert [official[i][0].split(" ") for i in range(len(captions))] == ptb.java_words(captions)


def test_no_java(monkeypatch):
    ptb.java_runs.cache_clear()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert not ptb.java_runs()
    ptb.java_runs.cache_clear()


@pytest.mark.parametrize(("code", "output", "message"), [(1, b"", "failed"), (0, b"a cat\n", "answered 1 lines to 2")])
def test_a_java_that_fails_is_an_error(monkeypatch, code, output, message):
    answer = subprocess.CompletedProcess([], code, stdout=output, stderr=b"no jar")
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: answer)
    with pytest.raises(RuntimeError, match=message):
        ptb.java_words(["a cat"])
