from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from lavit.data.folders import FolderSource
from lavit.data.images import open_image
from lavit.data.prepare import DataConfig, prepare
from lavit.data.shards import Shards
from lavit.data.sources import Source
from lavit.data.split import SplitConfig
from lavit.runs import Progress, read_progress
from lavit.tokenizers import features as module
from lavit.tokenizers.encoders import Encoder, EncoderConfig, LayerConfig, WeightsConfig, to_pixels
from lavit.tokenizers.features import PictureSet, cache_features, head_path, measure_statistics, write_array

CAPTIONS = ["red", "blue", "red", "green", "blue", "grey", "pink"]
SIZE = 64


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Shards:
    """Seven pictures, all of them training pictures."""
    root = tmp_path_factory.mktemp("pictures")
    (root / "images").mkdir()
    generator = np.random.default_rng(0)
    for i, caption in enumerate(CAPTIONS):
        noise = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((SIZE, 40)).save(root / "images" / f"{i}.png")
        (root / "images" / f"{i}.txt").write_text(caption)
    source = Source(folder=FolderSource(str(root / "images")))
    prepare(DataConfig(sources=[source], split=SplitConfig(0.0, 0.0), image_size=SIZE), root / "data")
    return Shards(root / "data" / "captions", "train")


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    layers = [LayerConfig("blocks.1", 24)]
    weights = WeightsConfig(random=0)
    return Encoder(EncoderConfig(weights=weights, image_size=SIZE, grid=4, layers=layers, clip=6.0)).eval()


def pixels_of(shards: Shards) -> torch.Tensor:
    return torch.stack([to_pixels(open_image(shards.file(i), str(i)), SIZE) for i in range(len(shards))])


def test_picture_set_without_cached_features_gives_pixels(shards):
    pictures = PictureSet(shards)
    assert len(pictures) == 7 and sorted(pictures.captions) == sorted(CAPTIONS)
    given = pictures.inputs(torch.tensor([4, 0]), SIZE)
    assert given.shape == (2, 3, SIZE, SIZE) and given.dtype == torch.float32
    assert torch.equal(given, pixels_of(shards)[[4, 0]])
    assert 0 <= given.min() and given.max() <= 1


def test_distinct_captions_evenly_thinned(shards):
    pictures = PictureSet(shards)
    pictures.captions = CAPTIONS
    chosen = pictures.distinct()
    assert [CAPTIONS[n] for n in chosen if CAPTIONS[n] in ("green", "grey", "pink")] == ["green", "grey", "pink"]
    assert sorted(CAPTIONS[n] for n in chosen) == sorted(set(CAPTIONS)) and chosen == sorted(chosen)
    assert pictures.distinct(5) == pictures.distinct(9) == chosen
    assert pictures.distinct(2) == [chosen[0], chosen[2]] and pictures.distinct(1) == chosen[:1]


def test_no_style_is_preferred_among_pictures_of_one_caption(shards):
    pictures = PictureSet(shards)
    pictures.captions = [f"thing {i}" for i in range(200)] * 2  # all of one style, then all of another
    second = sum(n >= 200 for n in pictures.distinct())
    assert 70 < second < 130


def test_statistics_are_those_of_the_pictures(shards, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BATCH", 3)
    path = tmp_path / "deep" / "statistics.npy"
    measure_statistics(shards, encoder, path)
    raw = encoder.raw(pixels_of(shards)).flatten(0, 1).numpy().astype(np.float64)
    np.testing.assert_allclose(encoder.mean.numpy(), raw.mean(0), atol=1e-5)
    np.testing.assert_allclose(encoder.std.numpy(), np.maximum(raw.std(0), 1e-6), atol=1e-5)
    write_array(path, np.stack([np.full(24, 2.0), np.full(24, 4.0)]).astype(np.float32))
    measure_statistics(shards, encoder, path)
    assert (encoder.mean == 2).all() and (encoder.std == 4).all(), "what is on disk is not measured again"


def test_a_sample_is_spread_over_all_pictures(shards, encoder, tmp_path):
    measure_statistics(shards, encoder, tmp_path / "some.npy", sample=2)
    raw = encoder.raw(pixels_of(shards)[[0, 6]]).flatten(0, 1)
    torch.testing.assert_close(encoder.mean, raw.mean(0), atol=1e-5, rtol=1e-5)


def test_cached_features_are_the_encoder_s(shards, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BATCH", 3)
    measure_statistics(shards, encoder, tmp_path / "statistics.npy")
    path = tmp_path / "features" / "captions-train.npy"
    progress = Progress(tmp_path, 20, "pictures", every=0)
    assert cache_features(shards, encoder, path, progress, done=10) == 17
    assert read_progress(tmp_path).done == 17
    expected = encoder(pixels_of(shards))
    pictures = PictureSet(shards, path)
    given = pictures.inputs(torch.tensor([6, 2]), SIZE)
    assert given.shape == (2, 16, 24) and given.dtype == torch.float32
    torch.testing.assert_close(given, expected[[6, 2]], atol=5e-3, rtol=0)
    assert np.load(path).dtype == np.float16 and np.load(path).shape == (7, 16, 24)
    head = encoder.raw_and_head(pixels_of(shards))[1]
    np.testing.assert_allclose(np.load(head_path(path)), head.numpy(), atol=1e-5)
    made = {p: p.stat().st_mtime_ns for p in path.parent.iterdir()}
    assert cache_features(shards, encoder, path, progress, done=0) == 7
    assert made == {p: p.stat().st_mtime_ns for p in path.parent.iterdir()}, "no leftovers, nothing made twice"


def test_interrupted_cache_is_not_taken_for_whole(shards, encoder, tmp_path, monkeypatch):
    path = tmp_path / "captions-train.npy"
    with monkeypatch.context() as broken:
        broken.setattr(encoder, "standardize", lambda raw: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            cache_features(shards, encoder, path, Progress(tmp_path, 7, "pictures"), 0)
    assert not path.exists() and not head_path(path).exists()
    (tmp_path / ".captions-train.npy.123.tmp").touch()
    cache_features(shards, encoder, path, Progress(tmp_path, 7, "pictures"), 0)
    assert len(PictureSet(shards, path)) == 7
    assert not list(tmp_path.glob(".*.tmp")), "what a killed run left is gone"


def test_features_of_other_pictures_are_refused(shards, tmp_path):
    write_array(tmp_path / "old.npy", np.zeros((6, 16, 24), np.float16))
    with pytest.raises(ValueError, match="old.npy holds 6 pictures and the shards 7; remove it"):
        PictureSet(shards, tmp_path / "old.npy")
