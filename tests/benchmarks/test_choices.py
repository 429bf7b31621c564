import pytest

from lavit.benchmarks.choices import choice_index
from lavit.benchmarks.sets import read_benchmark
from tests.benchmarks.official import scienceqa
from tests.benchmarks.test_sets import change


def test_scienceqa_with_and_without_pictures(tmp_path):
    items = read_benchmark("scienceqa", scienceqa(tmp_path), "test").items
    assert [item.id for item in items] == ["5", "4"]
    assert items[0].image == tmp_path / "images" / "test" / "5" / "image.png" and items[1].image is None
    assert items[1].references == ("Idaho",) and items[1].about["choices"] == ("Ohio", "Idaho")
    about = {name: items[1].about[name] for name in ("answer", "hint", "lecture", "subject", "grade")}
    assert about == {"answer": 1, "hint": "A hint.", "lecture": "", "subject": "natural science", "grade": "grade2"}
    (item,) = read_benchmark("scienceqa", tmp_path, "test-img").items
    assert item == items[0]


@pytest.mark.parametrize("name, edit, text", [
    ("problems", lambda f: f["4"].update(answer=2), "4.answer is 2, of 2 choices"),
    ("problems", lambda f: f["4"].update(answer="B"), "4.answer is 'B' and not a whole number"),
    ("problems", lambda f: f["4"].update(split="val"), "problem 4 is of split val, in pid_splits.json of test"),
    ("problems", lambda f: f.pop("4"), "problems.json: 4 is missing"),
    ("problems", lambda f: f["5"].pop("hint"), "5.hint is missing"),
    ("pid_splits", lambda f: f.pop("test"), "pid_splits.json: test is missing"),
    ("pid_splits", lambda f: f["test"].append(4), "test holds 4 and not text alone"),
    ("pid_splits", lambda f: f["test"].append("4"), "ScienceQA in .* has the id '4' twice"),
])  # fmt: skip
def test_altered_scienceqa(name, edit, text, tmp_path):
    change(scienceqa(tmp_path) / f"{name}.json", edit)
    with pytest.raises(ValueError, match=text):
        read_benchmark("scienceqa", tmp_path, "test")


@pytest.mark.parametrize("text, index", [
    ("Idaho", 1), (" idaho.", 1), ("B", 1), ("(B)", 1), ("B.", 1), ("B. Idaho", 1), ("(A) no", 0),
    ("The answer is B.", 1), ("So the answer is (A), Ohio", 0), ("The answer is: B", 1),
    ("", None), ("C", None), ("b", None), ("A state", None), ("Boise", None), ("The answer is Ohio", None),
])  # fmt: skip
def test_what_choice_a_text_means(text, index):
    assert choice_index(text, ["Ohio", "Idaho"]) == index


def test_a_choices_own_text_comes_before_letters():
    assert choice_index("A", ["B", "A"]) == 1
    assert choice_index("да", ["нет", "да"]) == 1


def test_choices_may_differ_in_capitals_alone():
    choices = ["the Lion King", "The Lion King", "The Lion king."]
    assert [choice_index(choice, choices) for choice in choices] == [0, 1, 2]
    assert choice_index("THE LION KING", choices) is None
    assert choice_index("x", ["x", "x"]) == 0
