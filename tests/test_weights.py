from __future__ import annotations

import pytest
import torch
from torch import nn

from lavit.weights import load_weights, save_weights


def model(width: int = 4) -> nn.Module:
    made = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width))
    made.register_buffer("steps", torch.tensor(7))
    return made


def test_round_trip_with_buffers(tmp_path):
    torch.manual_seed(0)
    first, second = model(), model()
    save_weights(first, tmp_path / "deep" / "model.safetensors")
    assert load_weights(second, tmp_path / "deep" / "model.safetensors") is second
    assert not second.training
    for name, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["model.safetensors"]


def test_shared_parameters_are_saved(tmp_path):
    tied = lambda: nn.ModuleDict({"embedding": nn.Embedding(5, 2), "head": nn.Linear(2, 5, bias=False)})  # noqa: E731
    first, second = tied(), tied()
    for made in (first, second):
        made["head"].weight = made["embedding"].weight
    save_weights(first, tmp_path / "w.safetensors")
    load_weights(second, tmp_path / "w.safetensors")
    assert torch.equal(second["head"].weight, first["embedding"].weight)
    assert second["head"].weight is second["embedding"].weight


def test_what_does_not_fit_is_named(tmp_path):
    path = tmp_path / "w.safetensors"
    with pytest.raises(ValueError, match="no weights at .*w.safetensors; run the stage that writes them first"):
        load_weights(model(), path)
    save_weights(model(5), path)
    with pytest.raises(ValueError, match=r"0.bias is \(5,\) instead of \(4,\), 0.weight is .*, 1.bias is"):
        load_weights(model(4), path)
    save_weights(nn.Linear(3, 4), path)
    with pytest.raises(ValueError, match="0.bias is missing, .*, bias is unexpected, weight is unexpected"):
        load_weights(model(), path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(
        ValueError, match=r"w.safetensors cannot be read as weights .*; remove .* and run its stage again"
    ):
        load_weights(model(), path)


def test_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    save_weights(model(), path)
    before = path.read_bytes()
    monkeypatch.setattr("lavit.runs.folder.os.replace", lambda *names: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_weights(model(), path)
    assert path.read_bytes() == before
