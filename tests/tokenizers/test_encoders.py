from __future__ import annotations

import importlib
import resource
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from lavit.data.assets import fetch
from lavit.tokenizers.encoders import Encoder, EncoderConfig, LayerConfig, WeightsConfig, check_encoder, to_pixels

LAYERS = [LayerConfig("blocks.1", 24), LayerConfig("blocks.4", 112)]
VIT = {"model": "vit_tiny_patch16_224", "image_size": 64, "grid": 4, "layers": [LayerConfig("blocks.11", 192)]}


def encoder(**changes) -> Encoder:
    settings = {"weights": WeightsConfig(random=0), "image_size": 64, "grid": 4, "layers": LAYERS, "clip": 6.0}
    return Encoder(EncoderConfig(**{**settings, **changes})).eval()


def images(count: int = 2, size: int = 64) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def lite0() -> Encoder:
    return encoder()


# ----------------------------------------------------------------------------------------------- the packaged weights


@pytest.mark.network
def test_packaged_weights_in_timm_give_the_outputs_of_their_own_network(monkeypatch):
    matplotlib = pytest.importorskip("matplotlib")
    photo = Image.open(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg").convert("RGB")
    monkeypatch.syspath_prepend(str(fetch("lite0-network")))
    package = importlib.import_module("efficientnet_lite_pytorch")
    theirs = package.EfficientNet.from_name("efficientnet-lite0").eval()
    theirs.load_state_dict(torch.load(next(fetch("lite0-weights").rglob("*.pth")), weights_only=True))
    config = EncoderConfig(image_size=224, grid=7, layers=[LayerConfig("bn2", 1280)], clip=0)
    ours = Encoder(config).eval()
    pixels = to_pixels(photo, 224)[None]
    # In double precision the two agree but for the final rounding; in float32 their sums run in another order.
    for pair, exact in ((ours, theirs), 1e-4), ((ours.double(), theirs.double()), 1e-5):
        kind = next(pair[0].parameters()).dtype
        with torch.no_grad():
            features, head = pair[0].raw_and_head(pixels.to(kind))
            expected = pair[1].extract_features((pixels.to(kind) * 255 - 127) / 128)
        assert features.shape == (1, 49, 1280) and expected.max() > 1
        assert (features - expected.flatten(2).transpose(1, 2)).abs().max() < exact
        assert (head - expected.mean((2, 3))).abs().max() < exact
    for name in [name for name in sys.modules if name.startswith("efficientnet_lite_pytorch")]:
        monkeypatch.delitem(sys.modules, name)


# ------------------------------------------------------------------------------------------------------------ features


def test_features_are_the_layers_side_by_side_on_one_grid(lite0):
    with torch.no_grad():
        raw = lite0.raw(images())
        x = (images() - 127 / 255) / (128 / 255)
        x = lite0.backbone.bn1(lite0.backbone.conv_stem(x))
        for block in lite0.backbone.blocks[:2]:
            x = block(x)
        early = F.adaptive_avg_pool2d(x, 4)
    assert raw.shape == (2, 16, 136) and raw.dtype == torch.float32
    torch.testing.assert_close(raw[..., :24], early.flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-5)


def test_small_maps_are_enlarged_to_the_grid():
    made = encoder(layers=[LayerConfig("blocks.6", 320)])  # 2 x 2 at 64 px
    assert made.raw(images()).shape == (2, 16, 320)


def test_a_transformer_s_tokens_lose_their_prefix():
    made = encoder(**VIT)
    with torch.no_grad():
        x = made.backbone.patch_embed((images() - 127 / 255) / (128 / 255))
        x = made.backbone.norm_pre(made.backbone.patch_drop(made.backbone._pos_embed(x)))
        last = made.backbone.blocks(x)
    raw = made.raw(images())
    assert raw.shape == (2, 16, 192)
    torch.testing.assert_close(raw, last[:, 1:], atol=1e-5, rtol=1e-5)


def test_features_are_independent_of_batch_neighbours_and_of_train_mode(lite0):
    together = lite0(images(3))
    torch.testing.assert_close(lite0(images(3)[1:2])[0], together[1], atol=1e-5, rtol=0)
    lite0.train()
    assert not lite0.backbone.training
    torch.testing.assert_close(lite0(images(3)), together, atol=0, rtol=0)
    lite0.eval()


def test_backbone_is_frozen(lite0):
    assert not any(p.requires_grad for p in lite0.parameters())
    assert not lite0(images().requires_grad_()).requires_grad


def test_standardization(lite0):
    raw = lite0.raw(images())
    mean, std = raw.mean((0, 1)), raw.std((0, 1))
    made = encoder()
    made.standardize_by(mean, std)
    expected = ((raw - mean) / std).clamp(-6, 6)
    torch.testing.assert_close(made(images()), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(encoder(clip=0.0).standardize(raw)[..., :24], raw[..., :24])
    tight = encoder(clip=0.1)
    tight.standardize_by(mean, std)
    assert tight(images())[..., :24].abs().max() == pytest.approx(0.1)


def test_statistics_are_saved_with_the_weights(lite0):
    made = encoder()
    made.standardize_by(torch.full((136,), 2.0), torch.zeros(136))
    state = made.state_dict()
    assert torch.equal(state["mean"], torch.full((136,), 2.0))
    assert (state["std"] > 0).all(), "a constant channel must not divide by zero"


# ------------------------------------------------------------------------------------------------------------- weights


def test_random_weights_depend_on_their_seed_alone():
    torch.manual_seed(1)
    first = encoder()
    torch.manual_seed(2)
    second, other = encoder(), encoder(weights=WeightsConfig(random=1))
    assert torch.equal(first.raw(images()), second.raw(images()))
    assert not torch.equal(first.raw(images()), other.raw(images()))
    assert first.raw(images()).std(1).mean() > 1e-3, "features must differ from patch to patch"


def test_building_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    encoder()
    assert torch.equal(torch.rand(3), expected)


def test_local_file(tmp_path, lite0):
    torch.save(lite0.backbone.state_dict(), tmp_path / "weights.pt")
    made = encoder(weights=WeightsConfig(file=str(tmp_path / "weights.pt")))
    assert torch.equal(made.raw(images()), lite0.raw(images()))
    state = lite0.backbone.state_dict()
    state["surprise"] = state.pop("conv_stem.weight")
    state["classifier.bias"] = torch.zeros(3)
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(
        ValueError, match=r"conv_stem.weight is missing, surprise is unexpected, classifier.bias is \(3,\)"
    ):
        encoder(weights=WeightsConfig(file=str(tmp_path / "other.pt")))
    with pytest.raises(ValueError, match="no encoder weights at .*gone.pt; set tokenizer.encoder.weights.file"):
        encoder(weights=WeightsConfig(file=str(tmp_path / "gone.pt")))


# -------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"layers": []}, "tokenizer.encoder.layers is empty"),
        ({"layers": [LayerConfig("blocks.99", 1)]}, "layer 'blocks.99' is not in timm's tf_efficientnet_lite0"),
        ({"layers": [LayerConfig("blocks.1", 25)]}, "layer 'blocks.1' has width 24, the config says 25"),
        ({**VIT, "grid": 5}, "grid 5 means 25 patches but vit_tiny_patch16_224 gives 16 patches at image_size 64"),
    ],
)
def test_what_does_not_fit_is_named(changes, said):
    with pytest.raises(ValueError, match=said):
        encoder(**changes).raw(images())


@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (1, 1, 64, 64), (3, 64, 64)])
def test_pixels_of_another_shape(lite0, shape):
    with pytest.raises(ValueError, match=r"images must be \(B, 3, 64, 64\), tokenizer.encoder.image_size"):
        lite0(torch.zeros(shape))


# -------------------------------------------------------------------------------------------------------------- pixels


def test_pictures_are_padded_with_white_to_a_square():
    pixels = to_pixels(Image.new("RGB", (8, 4), (255, 0, 0)), 8)
    assert pixels.shape == (3, 8, 8) and pixels.dtype == torch.float32
    assert (pixels[:, [0, 1, 6, 7]] == 1).all()
    assert (pixels[0, 2:6] == 1).all() and (pixels[1:, 2:6] == 0).all()


def test_pixels_are_those_of_a_bicubic_resize():
    noise = np.random.default_rng(0).integers(0, 256, (10, 10, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(noise).resize((6, 6), Image.Resampling.BICUBIC)) / 255
    np.testing.assert_allclose(to_pixels(Image.fromarray(noise), 6).permute(1, 2, 0).numpy(), expected, atol=1e-6)
    assert torch.equal(to_pixels(Image.fromarray(noise), 10)[:, 3, 4] * 255, torch.tensor(noise[3, 4]).float())


def test_a_picture_is_stretched_where_that_is_asked_for():
    wide = Image.new("RGB", (8, 4), (255, 0, 0))
    assert (to_pixels(wide, 8, "stretch")[1] == 0).all() and (to_pixels(wide, 8)[1, 0] == 1).all()
    with pytest.raises(ValueError, match=r"tokenizer\.encoder\.fit 'crop' is unknown; choose pad or stretch"):
        encoder(fit="crop")


def test_a_thin_picture_takes_little_memory():
    image = Image.new("RGB", (60000, 1), (0, 0, 0))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pixels = to_pixels(image, 16)
    assert pixels.shape == (3, 16, 16) and pixels.min() < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000, "KiB; a square of it has 10 GiB"


def test_a_model_that_timm_has_not():
    with pytest.raises(ValueError, match="'efficientnet_lite99' is not one of timm's; near: "):
        encoder(model="efficientnet_lite99")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({**VIT, "grid": 7}, "grid 7 means 49 patches but .* 16"),
        ({"layers": [LayerConfig("blocks.1", 25)]}, "width 24"),
    ],
)
def test_what_does_not_fit_is_found_without_weights(changes, said):
    settings = {"image_size": 64, "grid": 4, "layers": LAYERS, "weights": WeightsConfig(file="/nowhere")}
    with pytest.raises(ValueError, match=said):
        check_encoder(EncoderConfig(**{**settings, **changes}))
    check_encoder(EncoderConfig(**settings))


def test_every_transformer_is_told_the_size():
    layer = LayerConfig("blocks.11", 192)
    made = encoder(
        model="deit_tiny_patch16_224", image_size=64, grid=4, layers=[layer], weights=WeightsConfig(random=0)
    )
    assert made.raw(images()).shape == (2, 16, 192)


@pytest.mark.parametrize("rubbish", [b"", b"not weights", b"\x80\x02hello"])
def test_weights_that_cannot_be_read(tmp_path, rubbish):
    (tmp_path / "w.pth").write_bytes(rubbish)
    with pytest.raises(ValueError, match=r"w\.pth cannot be read as weights"):
        encoder(weights=WeightsConfig(file=str(tmp_path / "w.pth")))
