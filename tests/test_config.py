from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lavit.config import (
    ConfigError,
    OneOf,
    changed_keys,
    load,
    load_section,
    read_layers,
    read_plain,
    to_yaml,
)
from lavit.experiment import Experiment, load_experiment

CONFIGS = Path(__file__).parents[1] / "configs"
READY = sorted(path for path in CONFIGS.glob("*/*.yaml") if path.parent.name != "data")


@dataclass
class Ink:
    colour: str = "black"
    litres: float = 1.0


@dataclass
class Pencil:
    hardness: int = 2


@dataclass
class Tool(OneOf):
    ink: Ink | None = None
    pencil: Pencil | None = None
    chalk: str | None = None


@dataclass
class Line:
    width: int = 1
    dashes: list[int] = field(default_factory=list)


@dataclass
class Drawing:
    name: str = "untitled"
    size: int | None = None
    tool: Tool = field(default_factory=lambda: Tool(ink=Ink()))
    lines: list[Line] = field(default_factory=list)
    tools: list[Tool] = field(default_factory=list)
    layers: dict[str, Line] = field(default_factory=dict)
    scale: dict[str, float] = field(default_factory=dict)
    grid: bool = False


@pytest.fixture
def write(tmp_path):
    def make(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    return make


# ------------------------------------------------------------------------------------------------------- values


def test_defaults_then_yaml_then_overrides(write):
    path = write("a.yaml", "name: yaml\nsize: 3\nlines: [{width: 2, dashes: [1, 2]}, {}]\nlayers: {back: {width: 9}}")
    made = load(Drawing, path, ["size=4", "tool.ink.colour=red"])
    assert made.name == "yaml" and made.size == 4 and made.grid is False
    assert made.lines == [Line(2, [1, 2]), Line()] and made.layers == {"back": Line(9)}
    assert made.tool == Tool(ink=Ink("red", 1.0))
    assert load(Drawing) == Drawing()


def test_empty_file_gives_the_defaults(write):
    assert load(Drawing, write("a.yaml", "")) == Drawing()


@pytest.mark.parametrize(
    ("text", "overrides", "said"),
    [
        ("size: big", [], "size"),
        ("lines: [{width: wide}]", [], "width"),
        ("tool: {pencil: {hardness: 1.5}}", [], "hardness"),
        ("tool: 5", [], "tool': 5 is no mapping; it holds ink, pencil, chalk"),
        ("lines: {a: 1}", [], "lines': a list is given whole, lines=\\[...\\]"),
        ("", ["lines.0.width=3"], "lines"),
        ("", ["lines[0].width=3"], "lines"),
        ("name: null", [], "name"),
        ("scale: {a: much}", [], "scale"),
        ("", ["size=big"], "size"),
        ("", ["grid=perhaps"], "grid"),
    ],
)
def test_value_of_the_wrong_type_names_its_key(write, text, overrides, said):
    with pytest.raises(ConfigError, match=f"bad value for '.*{said}"):
        load(Drawing, write("a.yaml", text), overrides)


# --------------------------------------------------------------------------------------------------- unknown keys


@pytest.mark.parametrize(
    ("text", "unknown", "meant"),
    [
        ("nmae: x", "nmae", "name"),
        ("tool: {ink: {color: red}}", "tool.ink.color", "tool.ink.colour"),
        ("lines: [{}, {widht: 3}]", "lines.1.widht", "lines.1.width"),
        ("tools: [{pencl: {}}]", "tools.0.pencl", "tools.0.pencil"),
        ("tools: [{pencil: {hardnes: 3}}]", "tools.0.pencil.hardnes", "tools.0.pencil.hardness"),
        ("layers: {back: {dash: [1]}}", "layers.back.dash", "layers.back.dashes"),
    ],
)
def test_unknown_key_is_answered_with_the_nearest(write, text, unknown, meant):
    path = write("a.yaml", text)
    with pytest.raises(ConfigError) as error:
        load(Drawing, path)
    assert str(error.value) == f"{path}: unknown key '{unknown}'; did you mean '{meant}'?"


def test_unknown_key_far_from_all_lists_what_there_is():
    with pytest.raises(ConfigError, match="command line: unknown key 'tool.zzz'; known here: ink, pencil, chalk"):
        load(Drawing, overrides=["tool.zzz=1"])


@pytest.mark.parametrize("override", ["name", "=3", "name=[1", "name=${gone}"])
def test_malformed_override(override):
    with pytest.raises(ConfigError):
        load(Drawing, overrides=[override])


# ----------------------------------------------------------------------------------------------------------- base


def test_base_chain_is_read_lowest_first(write):
    write("low.yaml", "name: low\nsize: 1\ntool: {ink: {litres: 7}}")
    write("middle.yaml", "base: low.yaml\nsize: 2")
    write("other.yaml", "size: 5\ngrid: true")
    top = write("top.yaml", "base: [middle.yaml, other.yaml]\ntool: {ink: {colour: blue}}")
    made = load(Drawing, top, ["name=said"])
    assert (made.name, made.size, made.grid, made.tool.ink) == ("said", 5, True, Ink("blue", 7.0))
    assert [Path(origin).name for origin, _ in read_layers(top, ["name=said"])] == [
        "low.yaml", "middle.yaml", "other.yaml", "top.yaml", "command line",
    ]  # fmt: skip


def test_base_is_relative_to_its_file(write):
    write("sub/low.yaml", "size: 8")
    write("sub/mid.yaml", "base: low.yaml")
    assert load(Drawing, write("top.yaml", "base: sub/mid.yaml")).size == 8


def test_two_files_may_share_a_base(write):
    write("low.yaml", "size: 1")
    write("a.yaml", "base: low.yaml\nname: a")
    write("b.yaml", "base: low.yaml\ngrid: true")
    assert load(Drawing, write("c.yaml", "base: [a.yaml, b.yaml]")) == Drawing(name="a", size=1, grid=True)


def test_base_loop_missing_file_and_broken_yaml(write):
    write("a.yaml", "base: b.yaml")
    loop = write("b.yaml", "base: a.yaml")
    with pytest.raises(ConfigError, match="lead back to itself"):
        load(Drawing, loop)
    with pytest.raises(ConfigError, match="no config file .*gone.yaml"):
        load(Drawing, write("c.yaml", "base: gone.yaml"))
    with pytest.raises(ConfigError, match="not valid YAML"):
        load(Drawing, write("d.yaml", "name: [1"))
    with pytest.raises(ConfigError, match="must hold a mapping"):
        load(Drawing, write("e.yaml", "- 1\n- 2"))
    with pytest.raises(ConfigError, match="nothing"):
        load(Drawing, write("f.yaml", "name: ${nothing}"))


# --------------------------------------------------------------------------------------------------- alternatives


def test_override_clears_the_choice_of_yaml_and_of_the_default(write):
    assert load(Drawing, overrides=["tool.pencil.hardness=4"]).tool == Tool(pencil=Pencil(4))
    path = write("a.yaml", "tool: {pencil: {hardness: 1}}")
    assert load(Drawing, path).tool == Tool(pencil=Pencil(1))
    assert load(Drawing, path, ["tool.chalk=white"]).tool == Tool(chalk="white")
    assert load(Drawing, path, ["tool.pencil.hardness=3"]).tool == Tool(pencil=Pencil(3))
    upper = write("b.yaml", "base: a.yaml\ntool: {ink: {colour: red}}")
    assert load(Drawing, upper).tool == Tool(ink=Ink("red"))
    assert load(Drawing, upper, ["tool.pencil={}"]).tool == Tool(pencil=Pencil()), "values of a cleared choice are gone"


def test_the_same_choice_keeps_what_lies_below(write):
    path = write("a.yaml", "tool: {ink: {litres: 3}}")
    assert load(Drawing, path, ["tool.ink.colour=green"]).tool.ink == Ink("green", 3.0)


@pytest.mark.parametrize(
    ("text", "overrides", "sets"),
    [
        ("tool: {ink: {}, chalk: white}", [], "'tool': Tool must set exactly one of .*; it sets ink, chalk"),
        ("tool: {ink: null}", [], "'tool': Tool must set exactly one of ink, pencil, chalk; it sets none"),
        ("", ["tool.ink=null"], "'tool': .* it sets none"),
        ("tools: [{chalk: red}, {}]", [], "'tools.1': .* it sets none"),
    ],
)
def test_not_exactly_one_choice(write, text, overrides, sets):
    with pytest.raises(ConfigError, match=sets):
        load(Drawing, write("a.yaml", text), overrides)


def test_chosen():
    assert Tool(pencil=Pencil(3)).chosen() == ("pencil", Pencil(3))
    with pytest.raises(ConfigError, match="exactly one of ink, pencil, chalk"):
        Tool().chosen()


# ------------------------------------------------------------------------------------------------------- sections


def test_load_section_reads_one_key_alone(write):
    path = write("a.yaml", "name: x\nunknown_elsewhere: 1\ntool: {chalk: red}")
    assert load_section(path, [], "name", str) == "x"
    assert load_section(path, ["tool.pencil.hardness=5"], "tool", Tool) == Tool(pencil=Pencil(5))
    assert load_section(path, [], "first", Line) == Line()
    with pytest.raises(ConfigError, match="sets no 'size'; add it there or give size=value"):
        load_section(path, [], "size", int)
    with pytest.raises(ConfigError, match="did you mean 'tool.chalk'"):
        load_section(path, ["tool.chal=1"], "tool", Tool)


# ------------------------------------------------------------------------------------------------ save, load, list


def test_save_and_load_give_an_equal_value(tmp_path):
    made = Drawing("n", 3, Tool(pencil=Pencil(7)), [Line(2, [3])], [Tool(chalk="c")], {"k": Line(4)}, {"a*": 0.5}, True)
    (tmp_path / "out.yaml").write_text(to_yaml(made))
    assert load(Drawing, tmp_path / "out.yaml") == made
    assert "ink" not in to_yaml(made), "unset alternatives are left out"
    assert read_plain(tmp_path / "out.yaml")["tool"] == {"pencil": {"hardness": 7}}


def test_changed_keys():
    old = {"a": 1, "b": {"c": 2, "d": [1]}, "gone": 0}
    new = {"a": 1, "b": {"c": 3, "d": [1, 2]}, "here": 0}
    assert changed_keys(old, new) == ["b.c", "b.d", "gone", "here"]
    assert changed_keys(old, old) == []


@pytest.mark.parametrize("path", READY, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_ready_configs_load_and_survive_a_round_trip(path, tmp_path):
    experiment = load_experiment(path)
    assert isinstance(experiment, Experiment) and experiment.tokenizer.model.encoder.layers
    (tmp_path / "again.yaml").write_text(to_yaml(experiment))
    assert load(Experiment, tmp_path / "again.yaml") == experiment


def test_ready_configs_are_there_and_answer_typos():
    assert {"demo", "toy"} <= {path.stem for path in READY}
    with pytest.raises(ConfigError, match="did you mean 'tokenizer.model.quantizer.codes'"):
        load_experiment(READY[0], ["tokenizer.model.quantizer.code=3"])
    overrides = ["tokenizer.model.selection.even.tokens=5", "tokenizer.model.places=null"]
    even = load_experiment(READY[0], overrides).tokenizer.model.selection
    assert even.gain is None and even.even.tokens == 5
