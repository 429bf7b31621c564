from __future__ import annotations

import dataclasses
import errno
import resource
import shutil
import signal

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file

from lavit.layers.lora import LoRAConfig
from lavit.model import LLMConfig, ModelConfig, ScratchConfig, UnifiedLM
from lavit.pipeline import LaVIT, Refused
from lavit.release import LanguageConfig, describe, read_config, write_release
from lavit.tokenizers.merger import Merger
from lavit.vocabulary import Vocabulary

PICTURE = (np.arange(40 * 30 * 3) % 251).astype(np.uint8).reshape(40, 30, 3)


@pytest.fixture(scope="module")
def folder(system, tmp_path_factory):
    place = tmp_path_factory.mktemp("made") / "release"
    system.save_pretrained(place, card="# Card")
    return place


def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def test_what_was_saved_does_the_same(system, folder):
    again = LaVIT.from_pretrained(folder, "cpu")
    assert again.caption(PICTURE) == system.caption(PICTURE)
    assert again.answer(PICTURE, "what is it?") == system.answer(PICTURE, "what is it?")
    for ours, theirs in ((again, system),):
        assert np.array_equal(ours.draw("a cat", seed=3), theirs.draw("a cat", seed=3))
        assert np.array_equal(ours.reconstruct(PICTURE, seed=1), theirs.reconstruct(PICTURE, seed=1))
    assert again.plans == system.plans and (folder / "README.md").read_text() == "# Card"
    for mine, its in ((again.tokenizer, system.tokenizer), (again.model, system.model)):
        state = its.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in mine.state_dict().items())


def test_nothing_is_pickled_and_every_file_has_a_digest(folder):
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {path.rpartition(".")[2] for path in files} <= {"yaml", "md", "json", "safetensors", "jinja"}
    assert set(read_config(folder).files) == files - {"config.yaml", "README.md"}


def test_whoever_may_read_new_files_may_read_all_of_it(folder, tmp_path):
    (tmp_path / "new").touch()
    modes = {path.stat().st_mode for path in folder.rglob("*") if path.is_file()}
    assert modes == {(tmp_path / "new").stat().st_mode}


def test_a_copy_keeps_the_card_unless_it_gets_another(folder, tmp_path):
    system = LaVIT.from_pretrained(folder, "cpu")
    system.save_pretrained(tmp_path / "copy")
    system.save_pretrained(tmp_path / "other", card="# Other")
    assert (tmp_path / "copy" / "README.md").read_text() == "# Card"
    assert (tmp_path / "other" / "README.md").read_text() == "# Other"


def test_settings_that_cannot_be_are_said_before_anything_is_opened(folder, tmp_path):
    place = copy(folder, tmp_path)
    for name in ("language_model/.DS_Store", "tokenizer/._model.safetensors"):  # as copying leaves them
        (place / name).write_bytes(b"x")
    LaVIT.from_pretrained(place, "cpu")
    describe(place)
    text = (place / "config.yaml").read_text()
    for old, new, said in (
        ("port: features", "port: foo", "language_model: port 'foo' is unknown"),
        ("format:", "farmat:", "names no format"),
        ("files:", "files:\n  ../secret: abc", "names files outside of the release: ../secret"),
    ):
        (place / "config.yaml").write_text(text.replace(old, new, 1))
        with pytest.raises(ValueError, match=said):
            LaVIT.from_pretrained(place, "cpu")
    with pytest.raises(ValueError, match="bits is 0; choose 8 or 4"):
        LaVIT.from_pretrained(folder, "cpu", bits=0)
    with pytest.raises(ValueError, match="policy is a int"):
        LaVIT.from_pretrained(folder, "cpu", policy=3)


def test_diffusers_opens_its_part_alone(system, folder):
    unet = UNet2DConditionModel.from_pretrained(folder / "decoder" / "unet")
    state = system.renderer.unet.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in unet.state_dict().items())


def test_half_precision_halves_matrices_and_keeps_vectors(system, tmp_path):
    system.save_pretrained(tmp_path / "half", "float16")
    for name, value in load_file(tmp_path / "half/language_model/model.safetensors").items():
        assert value.dtype == (torch.float16 if value.dim() > 1 else torch.float32), name
    again = LaVIT.from_pretrained(tmp_path / "half", "cpu")
    assert {p.dtype for p in again.model.parameters()} == {torch.float32}
    half = LaVIT.from_pretrained(tmp_path / "half", "cpu", "bfloat16")
    assert {p.dtype for p in half.model.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in half.tokenizer.parameters()} == {torch.float32}
    assert isinstance(half.caption(PICTURE), str) and half.draw("a cat").size == (16, 16)
    with pytest.raises(ValueError, match="float8"):
        LaVIT.from_pretrained(tmp_path / "half", "cpu", "float8")


def test_the_folder_that_one_is_in_is_not_replaced(system, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="is the folder that you are in; name another"):
        system.save_pretrained(".")
    assert tmp_path.is_dir() and not any(tmp_path.iterdir())


def test_a_batch_and_a_policy_are_chosen_when_it_is_opened(folder):
    careful = LaVIT.from_pretrained(folder, "cpu", batch=3, policy=lambda image, text: "no")
    assert careful.batch == 3
    with pytest.raises(Refused, match="'a cat' is kept back: no"):
        careful.draw("a cat")
    with pytest.raises(ValueError, match="batch is 0; give a whole number"):
        LaVIT.from_pretrained(folder / "gone", "cpu", batch=0)


def test_weights_are_stored_in_parts(system, tmp_path):
    write_release(tmp_path / "parts", system.parts, "", shard="20KB")
    assert len(list((tmp_path / "parts" / "language_model").glob("model-*.safetensors"))) > 1
    assert LaVIT.from_pretrained(tmp_path / "parts", "cpu").caption(PICTURE) == system.caption(PICTURE)


def test_a_head_tied_to_its_embedding_stays_tied(system, tmp_path):
    from transformers import LlamaForCausalLM

    from lavit.model import LLMShape, llama_of

    size = len(system.text)
    llm = LlamaForCausalLM(llama_of(LLMShape(16, 1, 2, 2, 32, 64, size, tied=True)))
    model = UnifiedLM(ModelConfig(), Vocabulary(size, 12), 8, llm=llm).eval()
    assert model.head.text is model.embedding.text.weight
    LaVIT(dataclasses.replace(system.parts, model=model)).save_pretrained(tmp_path / "half", "float16")
    names = load_file(tmp_path / "half/language_model/model.safetensors").keys()
    assert len({"head.text", "embedding.text.weight"} & set(names)) == 1
    LaVIT(dataclasses.replace(system.parts, model=model)).save_pretrained(tmp_path / "tied")
    again = LaVIT.from_pretrained(tmp_path / "tied", "cpu").model
    assert again.head.text is again.embedding.text.weight
    assert torch.equal(again.head.text, model.head.text)
    names = load_file(tmp_path / "tied/language_model/model.safetensors").keys()
    assert len({"head.text", "embedding.text.weight"} & set(names)) == 1


def test_adapters_are_folded_into_their_matrices(system, tmp_path):
    scratch = ScratchConfig(hidden=16, layers=1, heads=2, mlp=32, max_position=64)
    config = ModelConfig(LLMConfig(scratch=scratch), lora=LoRAConfig(rank=2))
    model = UnifiedLM(config, Vocabulary(len(system.text), 12), 8).eval()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # adapters begin at zero
            parameter.data.normal_(generator=generator)
    adapted = LaVIT(dataclasses.replace(system.parts, model=model))
    adapted.save_pretrained(tmp_path / "folded")
    again = LaVIT.from_pretrained(tmp_path / "folded", "cpu")
    assert not [name for name, _ in again.model.named_parameters() if "lora" in name]
    assert [name for name, _ in model.named_parameters() if "lora" in name], "the model itself was changed"
    seen = adapted.see([PICTURE])
    ours, theirs = (each.caption_scores(seen, ["a cat", "dogs"]) for each in (again, adapted))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    assert not torch.allclose(ours, system.caption_scores(seen, ["a cat", "dogs"]), atol=1e-2)


def test_a_port_that_merges_patches_itself(system, tmp_path):
    c = system.tokenizer.config
    merger = Merger(c.encoder.width, c.encoder.patches, c.merger, c.attention)
    scratch = ScratchConfig(hidden=16, layers=1, heads=2, mlp=32, max_position=64)
    config = ModelConfig(LLMConfig(scratch=scratch), port="patches")
    model = UnifiedLM(config, Vocabulary(len(system.text), 12), 8, merger=merger).eval()
    merging = LaVIT(dataclasses.replace(system.parts, model=model, language=LanguageConfig(64, "features", "patches")))
    merging.save_pretrained(tmp_path / "merging")
    assert LaVIT.from_pretrained(tmp_path / "merging", "cpu").caption(PICTURE) == merging.caption(PICTURE)


def test_a_system_that_only_writes(system, tmp_path):
    LaVIT(dataclasses.replace(system.parts, renderer=None)).save_pretrained(tmp_path / "writer")
    writer = LaVIT.from_pretrained(tmp_path / "writer", "cpu")
    assert writer.caption(PICTURE) == system.caption(PICTURE)
    with pytest.raises(ValueError, match="no pixel decoder"):
        writer.draw("a cat")


def test_a_file_that_nobody_told_of_is_not_read(folder, tmp_path):
    place = copy(folder, tmp_path)
    shutil.copy(place / "language_model/model.safetensors", place / "language_model/zz.safetensors")
    with pytest.raises(ValueError, match="does not know: language_model/zz.safetensors"):
        LaVIT.from_pretrained(place)


def test_no_release_a_missing_and_an_altered_file(folder, tmp_path):
    with pytest.raises(ValueError, match="no config.yaml"):
        LaVIT.from_pretrained(tmp_path)
    place = copy(folder, tmp_path)
    weights = place / "language_model" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(ValueError, match="altered: language_model/model.safetensors"):
        LaVIT.from_pretrained(place)
    assert LaVIT.from_pretrained(place, "cpu", verify=False)
    weights.unlink()
    with pytest.raises(ValueError, match="missing language_model/model.safetensors"):
        LaVIT.from_pretrained(place, verify=False)


def test_another_format_and_an_unknown_key(folder, tmp_path):
    place = copy(folder, tmp_path)
    text = (place / "config.yaml").read_text()
    (place / "config.yaml").write_text(text.replace("format: 1", "format: 9\nlater: 1"))
    with pytest.raises(ValueError, match="format 9"):
        LaVIT.from_pretrained(place)
    (place / "config.yaml").write_text(text.replace("candidates:", "candidate:"))
    with pytest.raises(ValueError, match="candidates"):
        LaVIT.from_pretrained(place)


def test_a_folder_with_something_in_it_is_left_alone(system, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="is there already"):
        system.save_pretrained(tmp_path / "full")
    assert [path.name for path in tmp_path.rglob("*")] == ["full", "mine.txt"]


def test_a_full_disk_leaves_nothing(system, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("lavit.release.save_diffusers", full)
    with pytest.raises(ValueError, match="No space left"):
        system.save_pretrained(tmp_path / "release")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_while_weights_are_written(system, tmp_path):
    """The limit on a file's size stands for a disk that is full: weights are written by other code than Python's."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        with pytest.raises(ValueError, match="nothing was left there"):
            system.save_pretrained(tmp_path / "release")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert not list(tmp_path.iterdir())
