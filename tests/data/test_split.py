import subprocess
import sys
from collections import Counter

import pytest

from lavit.data.split import SPLITS, assign_split


def test_shares_are_met():
    counts = Counter(assign_split(f"thing {i}", 0, 0.05, 0.1) for i in range(20_000))
    assert abs(counts["validation"] / 20_000 - 0.05) < 0.006  # four standard errors
    assert abs(counts["test"] / 20_000 - 0.1) < 0.009
    assert set(counts) == set(SPLITS)


def test_the_same_in_every_process():
    names = [f"thing {i}" for i in range(40)]
    code = f"from lavit.data.split import assign_split as a; print([a(n, 7, .2, .3) for n in {names!r}])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert said == str([assign_split(name, 7, 0.2, 0.3) for name in names])
    assert said != str([assign_split(name, 8, 0.2, 0.3) for name in names])


def test_known_places():
    """sha256 of "seed, zero byte, concept", written out: a change would move every published test set."""
    places = {"hammer": 0.5944, "firefighter": 0.0587, "owl": 0.7744}
    for concept, place in places.items():
        assert assign_split(concept, 0, 0.0, place + 0.01) == "test"
        assert assign_split(concept, 0, 0.02, place - 0.01) == "validation"
        assert assign_split(concept, 0, 0.0, place - 0.01) == "train"


def test_a_larger_validation_share_leaves_the_test_split_alone():
    names = [f"thing {i}" for i in range(500)]
    small, large = ({n for n in names if assign_split(n, 0, v, 0.1) == "test"} for v in (0.05, 0.5))
    assert small == large


@pytest.mark.parametrize(("validation", "test"), [(-0.1, 0.1), (0.1, -0.1), (0.5, 0.5)])
def test_impossible_shares(validation, test):
    with pytest.raises(ValueError, match=f"validation={validation} and test={test}"):
        assign_split("x", 0, validation, test)
