import pytest

from lavit.benchmarks.sets import read_benchmark
from tests.benchmarks.official import TEN, gqa, okvqa, textvqa, vizwiz, vqav2
from tests.benchmarks.test_sets import change

ANSWERS = "v2_mscoco_val2014_annotations.json"


def test_vqav2_joins_answers_by_id(tmp_path):
    items = read_benchmark("vqav2", vqav2(tmp_path)).items
    assert [item.id for item in items] == [42000, 42001, 73000]
    assert items[1].question == "Чья?" and items[1].references == tuple(TEN)
    assert items[0].about == {"answer_type": "yes/no", "question_type": "is it a"}
    assert items[0].image is items[1].image and items[2].image.name == "COCO_val2014_000000000073.jpg"


@pytest.mark.parametrize("split", ["test-dev", "test2015"])
def test_vqav2_keeps_the_answers_of_its_test_questions(split, tmp_path):
    (item,) = read_benchmark("vqav2", vqav2(tmp_path), split).items
    assert (item.id, item.references, item.about) == (1000, (), {})
    assert item.image == tmp_path / "test2015" / "COCO_test2015_000000000001.jpg"


def test_okvqa_is_of_the_same_form(tmp_path):
    item = read_benchmark("okvqa", okvqa(tmp_path)).items[0]
    assert item.about["question_type"] == "eight" and len(item.references) == 10


@pytest.mark.parametrize("edit, text", [
    (lambda a: a.pop(), "questions 42000 have no annotation"),
    (lambda a: a.append(a[0]), "question 73000 has two annotations"),
    (lambda a: a[0].update(question_id=1), r"annotations\[0\] is of question 1, which nobody asks"),
    (lambda a: a[0].update(image_id=42), r"annotations\[0\] is of image 42, its question of 73"),
    (lambda a: a[0]["answers"].pop(), r"annotations\[0\] has 9 answers and not 10"),
    (lambda a: a[1]["answers"][2].update(answer=2), r"annotations\[1\].answers.answer is 2 and not text"),
    (lambda a: a[1].pop("answer_type"), r"annotations\[1\].answer_type is missing"),
])  # fmt: skip
def test_altered_annotations(edit, text, tmp_path):
    change(vqav2(tmp_path) / ANSWERS, lambda file: edit(file["annotations"]))
    with pytest.raises(
        ValueError, match=f"{ANSWERS}: {text}, unlike the official file; get it anew from https://visual"
    ):
        read_benchmark("vqav2", tmp_path)


def test_altered_questions(tmp_path):
    path = vqav2(tmp_path) / "v2_OpenEnded_mscoco_val2014_questions.json"
    change(path, lambda file: file["questions"].append(file["questions"][0]))
    with pytest.raises(ValueError, match="VQAv2 in .* has the id 42000 twice"):
        read_benchmark("vqav2", tmp_path)
    change(path, lambda file: file["questions"][0].update(question_id="42000"))
    with pytest.raises(ValueError, match=r"questions\[0\].question_id is '42000' and not a whole number"):
        read_benchmark("vqav2", tmp_path)


def test_gqa_has_ids_of_text_and_one_answer(tmp_path):
    items = read_benchmark("gqa", gqa(tmp_path)).items
    assert [item.id for item in items] == ["201307251", "05515938"]
    assert items[0].references == ("no",) and items[0].image.name == "n161313.jpg"
    assert items[1].about == {"structural": "query", "semantic": "attr", "detailed": "weatherVerify"}


def test_altered_gqa(tmp_path):
    path = gqa(tmp_path) / "testdev_balanced_questions.json"
    text = path.read_text()
    path.write_text(text.replace("05515938", "201307251"))
    with pytest.raises(ValueError, match="the key '201307251' stands twice"):
        read_benchmark("gqa", tmp_path)
    path.write_text(text.replace('"structural"', '"form"', 1))
    with pytest.raises(ValueError, match="201307251.types.structural is missing"):
        read_benchmark("gqa", tmp_path)
    path.write_text("[]")
    with pytest.raises(ValueError, match="the file is no object with questions by id"):
        read_benchmark("gqa", tmp_path)


def test_vizwiz_names_questions_by_their_images(tmp_path):
    items = read_benchmark("vizwiz", vizwiz(tmp_path)).items
    assert [item.id for item in items] == ["VizWiz_val_00000000.jpg", "VizWiz_val_00000001.jpg"]
    assert items[1].about == {"answer_type": "unanswerable", "answerable": 0} and items[1].references == tuple(TEN)
    (item,) = read_benchmark("vizwiz", tmp_path, "test").items
    assert item.references == () and item.about == {}


@pytest.mark.parametrize("edit, text", [
    (lambda f: f[0].update(answerable=2), r"\[0\].answerable is 2 and neither 0 nor 1"),
    (lambda f: f[1].update(answers=[]), r"\[1\] has 0 answers and not 10"),
    (lambda f: f[1].pop("question"), r"\[1\].question is missing"),
    (lambda f: f[1].update(image=f[0]["image"]), "VizWiz-VQA in .* has the id 'VizWiz_val_00000000.jpg' twice"),
])  # fmt: skip
def test_altered_vizwiz(edit, text, tmp_path):
    change(vizwiz(tmp_path) / "Annotations" / "val.json", edit)
    with pytest.raises(ValueError, match=text):
        read_benchmark("vizwiz", tmp_path)


def test_vizwiz_is_a_list(tmp_path):
    (vizwiz(tmp_path) / "Annotations" / "val.json").write_text("{}")
    with pytest.raises(ValueError, match="the file is no list"):
        read_benchmark("vizwiz", tmp_path)


def test_textvqa(tmp_path):
    (item,) = read_benchmark("textvqa", textvqa(tmp_path)).items
    assert (item.id, item.references) == (34602, tuple(TEN))
    assert item.image == tmp_path / "train_images" / "003a8ae2ef43b901.jpg"
    change(tmp_path / "TextVQA_0.5.1_val.json", lambda file: file["data"][0].update(answers=[1] * 10))
    with pytest.raises(ValueError, match=r"data\[0\].answers holds 1 and not text alone"):
        read_benchmark("textvqa", tmp_path)
