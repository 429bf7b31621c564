"""FID's network with random weights: the library's own outputs, both ways of resizing, and files that are no good."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch_fidelity import FeatureExtractorInceptionV3, feature_extractor_inceptionv3

from lavit.benchmarks.inception import (
    FidConfig,
    Inception,
    check_fid,
    extractor_name,
    read_moments,
    reference_digest,
    reference_files,
    resized,
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file as torch-fidelity distributes it, of random weights."""
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        torch.manual_seed(0)
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        patch.setattr(feature_extractor_inceptionv3, "load_state_dict_from_url", lambda *given, **more: None)
        network = FeatureExtractorInceptionV3("inception", ["2048"])
    torch.save(network.state_dict(), path)
    return path


def picture(width, height, seed=0):
    levels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(levels)


def test_features_are_those_of_the_library(weights):
    own = FeatureExtractorInceptionV3("inception", ["2048"], str(weights))
    extractor = Inception(str(weights), "legacy_tensorflow")
    shown = picture(64, 48)
    (expected,) = own(torch.from_numpy(np.array(shown)).permute(2, 0, 1)[None])
    found = extractor.features([shown, picture(80, 80, 1)])  # of any sizes
    assert found.shape == (2, 2048) and float(expected.std()) > 0
    torch.testing.assert_close(found[:1], expected, rtol=1e-4, atol=1e-6)
    assert not extractor.official and "torch-fidelity 0." in extractor_name()
    clean = Inception(str(weights), "clean").features([shown])
    assert not torch.allclose(clean, expected, rtol=1e-2)


def test_ways_of_resizing():
    exact = picture(299, 299)
    levels = torch.from_numpy(np.array(exact, dtype=np.float32)).permute(2, 0, 1)
    for way in ("clean", "legacy_tensorflow"):
        torch.testing.assert_close(resized(exact, way), levels, rtol=0, atol=1e-3)
    # A checkerboard twice as fine: a filter makes it grey, nearest pairs of pixels stay what they are.
    board = Image.fromarray(np.indices((598, 598)).sum(0).astype(np.uint8) % 2 * 255).convert("RGB")
    assert float(resized(board, "clean")[:, 20:-20, 20:-20].std()) < 1
    assert resized(board, "legacy_tensorflow").unique().tolist() == [0]
    wide = resized(picture(40, 20), "clean")
    assert wide.shape == (3, 299, 299) and wide.min() >= 0 and wide.max() <= 255
    assert (wide != wide.round()).any(), "levels are not rounded"


def test_weights_of_another_network(weights, tmp_path):
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("no weights")
    torch.save({"fc": Image.new("RGB", (2, 2))}, tmp_path / "objects.pth")
    for name in ("other", "text", "objects"):
        with pytest.raises(ValueError, match=f"evaluation.fid.weights: .*{name}.pth does not hold Inception's weights"):
            Inception(str(tmp_path / f"{name}.pth"), "clean")
    with pytest.raises(ValueError, match="evaluation.fid.weights: no file nowhere.pth"):
        Inception("nowhere.pth", "clean")


def test_reference_statistics(tmp_path):
    mu, sigma = np.arange(2048.0), np.eye(2048, dtype=np.float32)
    np.savez(tmp_path / "good.npz", mu=mu, sigma=sigma, other=np.zeros(3))
    mean, covariance = read_moments(tmp_path / "good.npz")
    assert mean.dtype == covariance.dtype == torch.float64 and mean[5] == 5 and covariance.trace() == 2048
    np.savez(tmp_path / "small.npz", mu=mu[:64], sigma=sigma[:64, :64])
    np.savez(tmp_path / "half.npz", mu=mu)
    (tmp_path / "text.npz").write_text("no arrays")
    said = {
        "small": r"small.npz has mu \(64,\) and sigma \(64, 64\); those of FID are \(2048,\)",
        "half": "half.npz has no sigma",
        "text": "text.npz cannot be read as a .npz",
    }
    for name, words in said.items():
        with pytest.raises(ValueError, match=words):
            read_moments(tmp_path / f"{name}.npz")


def test_a_folder_of_reference_pictures(tmp_path):
    with pytest.raises(ValueError, match="no folder and no file"):
        reference_digest(tmp_path / "none")
    (tmp_path / "below").mkdir()
    picture(8, 8).save(tmp_path / "b.png")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match="1 pictures in"):
        reference_files(tmp_path)
    picture(8, 8, 1).save(tmp_path / "below" / "a.JPG", "JPEG")
    assert [path.name for path in reference_files(tmp_path)] == ["b.png", "a.JPG"]
    first = reference_digest(tmp_path)
    picture(9, 9, 2).save(tmp_path / "b.png")
    assert reference_digest(tmp_path) != first


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"resize": "nearest"}, "evaluation.fid.resize 'nearest' is unknown; choose legacy_tensorflow or clean"),
        ({"samples": 1}, "evaluation.fid.samples is 1"),
        ({"batch": 0}, "evaluation.fid.batch is 0"),
    ],
)
def test_settings_that_cannot_be(settings, said):
    with pytest.raises(ValueError, match=said):
        check_fid(FidConfig(**settings))
