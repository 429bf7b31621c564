"""The guides say what is true: what they name exists, examples load, figures are those of docs/results.json."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from eval.figures import TABLE, Figure
from lavit.data.assets import ASSETS
from lavit.experiment import Experiment, load_experiment
from lavit.pages.html import number

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "tokenizer/README.md", "pretrain/README.md", "eval/README.md", "docs/systems.md", "docs/scale.md")
GUIDES = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
README, TEXT = GUIDES["README.md"], "\n".join(GUIDES.values())
RESULTS = ROOT / "docs" / "results.json"
FENCED = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)
MADE_BY_A_RUN = ("runs/", "tokenizer/tokenizer.safetensors")  # named in the guides, not in the repository


def code_spans() -> list[str]:
    return re.findall(r"`([^`\n]+)`", FENCED.sub("", TEXT))


def commands() -> str:
    """All code of the guides: what a reader may type."""
    return "\n".join([*code_spans(), *(text for _, text in FENCED.findall(TEXT))])


def links() -> list[tuple[str, str]]:
    """Links into the repository as (path from the root, anchor or "")."""
    found = []
    for page, text in GUIDES.items():
        for path, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", FENCED.sub("", text)):
            if not path.startswith("http"):
                whole = os.path.normpath(Path(page).parent / path) if path else page
                found.append((whole, anchor))
    return found


def named_paths() -> list[str]:
    """Files and folders of the repository that the guides link to or name in code, from the root."""
    spans = [span for span in code_spans() if re.fullmatch(r"[\w.-]+(/[\w.-]+)+/?|[\w.-]+/", span)]
    configs = [f"configs/lavit/{span}" for span in code_spans() if re.fullmatch(r"\w+\.yaml", span)]
    linked = [path for path, _ in links()]
    return [path for path in [*linked, *spans, *configs] if not path.startswith(MADE_BY_A_RUN)]


def test_links_lead_to_a_heading():
    anchored = [(path, anchor) for path, anchor in links() if anchor]
    assert len(anchored) > 5
    for path, anchor in anchored:
        titles = re.findall(r"^#+ (.+)$", FENCED.sub("", (ROOT / path).read_text()), re.MULTILINE)
        assert anchor in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles], (path, anchor)


def test_named_paths_exist():
    paths = named_paths()
    assert len(paths) > 20
    missing = [path for path in paths if not (ROOT / path).exists()]
    # The configs that the reader is told to write are the paths that are not there yet.
    assert set(missing) <= {f"configs/lavit/{name}.yaml" for name in ("mine", "words", "latents")}, missing


def test_make_targets_exist_and_all_of_them_are_told():
    named = re.findall(r"^([a-z][\w -]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    targets = {target for names in named for target in names.split()}
    told = set(re.findall(r"\bmake ([a-z][\w-]*)", commands()))
    assert told and told <= targets, told - targets
    assert targets - told <= {"lint", "test-slow"}, targets - told


def test_make_variables_exist():
    known = set(re.findall(r"^(\w+) *\??=", (ROOT / "Makefile").read_text(), re.MULTILINE))
    lines = [line for line in commands().splitlines() if line.startswith("make ")]
    used = {name for line in lines for name in re.findall(r"\b([A-Z]+)=", re.sub(r'"[^"]*"', "", line))}
    assert {"CONFIG", "GPUS", "HOSTFILE", "PYTHON", "ARGS"} <= used <= known


def test_modules_exist():
    text = TEXT + (ROOT / "docs" / "flow.svg").read_text() + (ROOT / "Makefile").read_text()
    modules = set(re.findall(r"(?:-m |, )((?:tokenizer|pretrain|eval|lavit)\.\w+)", text))
    assert {"tokenizer.train", "tokenizer.extract", "pretrain.train", "tokenizer.train_decoder"} <= modules
    for module in modules:
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), module


def test_example_configs_load(tmp_path):
    examples = [text for language, text in FENCED.findall(TEXT) if language == "yaml"]
    found = []
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    for index, text in enumerate(examples):
        path = tmp_path / "configs" / "lavit" / f"example{index}.yaml"
        path.write_text(text)
        found.append(load_experiment(path))
    images, decoder, language, arms = found
    assert {source.chosen()[0] for source in images.data.sources} == {"folder", "coco_captions", "img2dataset"}
    assert images.data.vqa.chosen()[0] == "vqav2"
    assert decoder.trains_autoencoder and decoder.decoder.model.prediction == "flow_prediction"
    assert arms.checks.arms["half_the_steps"] == ["pretrain.phases.finetune.train.steps=110"]
    assert language.pretrain.model.llm.asset == language.pretrain.text.asset == "smollm2"


def test_settings_told_exist():
    """Dotted keys of a config that the guides speak of."""
    experiment = load_experiment(ROOT / "configs" / "lavit" / "demo.yaml")
    keys = [span for span in code_spans() if re.fullmatch(r"(tokenizer|data|demo|train)(\.[a-z_]+)+", span)]
    figures = {f"{figure.group}.{figure.name}" for figure in TABLE}
    keys = [key for key in keys if not key.endswith(".yaml") and key not in figures]
    assert len(keys) > 5
    for key in keys:
        value = experiment.pretrain if key.startswith("train.") else experiment
        for name in key.split("."):
            assert hasattr(value, name), key
            value = getattr(value, name)


def test_licences_are_those_of_the_assets():
    for asset in ASSETS.values():
        if asset.name != "lite0-network":  # for a test only
            assert re.search(rf"\| {asset.package} \([\w ]+\) \| {re.escape(asset.licence)} \|", README), asset.name


def test_pictures_are_small_and_told_of():
    pictures = re.findall(r"!\[([^\]]+)\]\(([^)]+)\)", README)
    assert ("docs/flow.svg" in [path for _, path in pictures]) and all(words for words, _ in pictures)
    assert all((ROOT / path).stat().st_size < 400_000 for _, path in pictures)


def row_of(figure: Figure, results: dict) -> str:
    """A row of README's table as it must be: the figure's mean over runs, and those of its baselines."""

    def mean(name: str) -> float | None:
        value = results.get(figure.group, {}).get(name)
        return value["mean"] if isinstance(value, dict) else value

    beside = {**figure.baselines, **figure.ceiling}
    words = [f"{words} {number(mean(name))}" for words, name in beside.items() if mean(name) is not None]
    key = f"{figure.group}.{figure.name}"
    return f"| {figure.title} | `{key}` | **{number(float(mean(figure.name)))}** | {', '.join(words)} |"


@pytest.mark.skipif(not RESULTS.is_file(), reason="no docs/results.json yet")
def test_results_are_those_of_the_runs():
    results = json.loads(RESULTS.read_text())
    told = [figure for figure in TABLE if f"`{figure.group}.{figure.name}`" in README]
    assert len(told) > 8, "README's table names its figures as metrics.json does"
    wanted = [row_of(figure, results) for figure in told]
    missing = [row for row in wanted if row not in README]
    assert not missing, "README's rows must be\n" + "\n".join(missing)


def test_row_of_results():
    figure = Figure("caption", "cider", "CIDEr", {"shuffled": "cider_shuffled", "constant": "none"})
    results = {"caption": {"cider": {"mean": 0.26123}, "cider_shuffled": {"mean": 0.02}}}
    assert row_of(figure, results) == "| CIDEr | `caption.cider` | **0.261** | shuffled 0.020 |"


def planned(*make: str) -> subprocess.CompletedProcess:
    """What make would do, whatever the make around it was told."""
    environment = {"PATH": os.environ["PATH"]}
    return subprocess.run(["make", "-n", *make], cwd=ROOT, env=environment, capture_output=True, text=True)


def loaded(*make: str) -> Experiment:
    """The experiment that a make target's benchmark gets, through make, the shell and the launcher's arguments."""
    plan = planned(*make)
    assert not plan.returncode, plan.stderr
    (line,) = (line for line in plan.stdout.splitlines() if "eval.benchmark" in line or "eval.fid" in line)
    config, *overrides = shlex.split(line)[shlex.split(line).index("--") + 1 :]
    return load_experiment(ROOT / config, overrides)


def test_a_standard_set_s_arguments_arrive():
    config = loaded("eval-caption", "SET=nocaps", "DATA=/data/no caps").benchmarks
    assert config.data == {"nocaps": "/data/no caps"} and config.sets == ["nocaps"]
    assert loaded("eval-vqa", "SET=gqa", "DATA=/data/it's").benchmarks.data == {"gqa": "/data/it's"}
    fid = loaded("eval-fid", "ARGS=evaluation.fid.weights=a.pth evaluation.fid.reference=b").evaluation.fid
    assert (fid.weights, fid.reference) == ("a.pth", "b")
    said = planned("eval-vqa", "SET=gqa")
    assert said.returncode and "give DATA, the folder that gqa was unpacked into" in said.stderr
    said = planned("eval-vqa", "DATA=/data")
    assert said.returncode and "give SET, the name of the standard set in /data" in said.stderr
    with pytest.raises(ValueError, match="gqa has no folder in benchmarks.data"):
        load_experiment(ROOT / "configs/lavit/demo.yaml", ["benchmarks.sets=[gqa]"])


def test_arguments_that_are_told_are_settings():
    told = re.findall(r'ARGS="([^"]*)"', TEXT.replace("\\\n", " "))
    assert len(told) > 5
    for line in told:
        for argument in shlex.split(line):
            assert re.fullmatch(r"[\w.]+=\S+", argument), line


def test_compare_takes_the_four_systems():
    plan = planned("compare")
    assert not plan.returncode, plan.stderr
    (line,) = (line for line in plan.stdout.splitlines() if "eval.compare" in line)
    assert line.split("eval.compare ")[1].split() == [
        f"configs/{system}/demo.yaml" for system in ("lavit", "teal", "visual_words", "spae")
    ]
