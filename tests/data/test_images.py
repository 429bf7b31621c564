import io

import numpy as np
import pytest
import torch
from PIL import Image

from lavit.data.images import ImageError, as_image, moved, open_image, shrink, to_webp


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def test_rgb_from_bytes_and_from_a_path(tmp_path):
    data = encoded(Image.new("RGB", (5, 3), (10, 20, 30)))
    (tmp_path / "a.png").write_bytes(data)
    for source in (data, tmp_path / "a.png"):
        image = open_image(source, "a")
        assert image.mode == "RGB" and image.size == (5, 3) and image.getpixel((4, 2)) == (10, 20, 30)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("RGBA", (2, 2), (255, 0, 0, 0)), (255, 255, 255)),
        (Image.new("RGBA", (2, 2), (255, 0, 0, 255)), (255, 0, 0)),
        (Image.new("RGBA", (2, 2), (0, 0, 0, 51)), (204, 204, 204)),  # a fifth of black on white
        (Image.new("LA", (2, 2), (0, 0)), (255, 255, 255)),
        (Image.new("L", (2, 2), 7), (7, 7, 7)),
        (Image.new("1", (2, 2), 1), (255, 255, 255)),
        (Image.new("I;16", (2, 2), 32896), (128, 128, 128)),  # 32896 = 128 * 257
    ],
)
def test_every_mode_lands_on_white(image, expected):
    assert open_image(encoded(image), "x").getpixel((0, 0)) == expected


def test_palette_transparency_is_white():
    image = Image.new("P", (2, 2), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 1), 1)
    result = open_image(encoded(image, transparency=0), "x")
    assert result.getpixel((0, 0)) == (255, 255, 255) and result.getpixel((1, 1)) == (0, 0, 255)


def test_exif_turns_the_picture_upright():
    image = Image.new("RGB", (4, 2), "red")
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    assert open_image(encoded(image, "JPEG", exif=exif), "x").size == (2, 4)


def test_the_first_frame_of_an_animation():
    frames = [Image.new("RGB", (3, 3), colour) for colour in ("red", "blue")]
    result = open_image(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), "x")
    assert result.getpixel((1, 1)) == (255, 0, 0)


def test_broken_pictures_name_themselves(tmp_path):
    whole = encoded(Image.effect_noise((64, 64), 50).convert("RGB"))
    jpeg = encoded(Image.effect_noise((64, 64), 50).convert("RGB"), "JPEG")
    corrupt = bytearray(whole)
    corrupt[200:300] = bytes(100)
    cases = {
        "": "is empty",
        "text": "it is none of PNG, JPEG",
        "cut": "cannot be decoded",
        "corrupt": "cannot be decoded",
    }
    data = {"": b"", "text": b"hello there", "cut": jpeg[: len(jpeg) // 2], "corrupt": bytes(corrupt)}
    for case, message in cases.items():
        with pytest.raises(ImageError, match=rf"image 'pic-{case}' .*{message}"):
            open_image(data[case], f"pic-{case}")
    with pytest.raises(ImageError, match="image 'gone' cannot be read: No such file"):
        open_image(tmp_path / "gone.png", "gone")


@pytest.mark.parametrize("kind", ["EPS", "PPM", "ICO"])
def test_other_formats_that_pillow_knows_are_refused(kind):
    with pytest.raises(ImageError, match="image 'other' cannot be decoded: it is none of PNG, JPEG"):
        open_image(encoded(Image.new("RGB", (16, 16)), kind), "other")


@pytest.mark.parametrize("mode", ["I", "F"])
def test_32_bits_a_channel_are_refused(mode):
    with pytest.raises(ImageError, match="image 'deep' cannot be decoded: it has 32 bits a channel"):
        open_image(encoded(Image.new(mode, (2, 2), 70000), "TIFF"), "deep")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_the_pixel_limit_is_an_error(monkeypatch):
    data = encoded(Image.new("L", (30, 30)))
    for limit in (500, 100):  # just over the limit Pillow only warns; at twice the limit it refuses
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(ImageError, match="image 'bomb' is too large"):
            open_image(data, "bomb")


def test_shrink_keeps_aspect_and_never_enlarges():
    assert shrink(Image.new("RGB", (400, 100)), 128).size == (128, 32)
    assert shrink(Image.new("RGB", (1000, 1)), 100).size == (100, 1)
    small = Image.new("RGB", (64, 20))
    assert shrink(small, 128) is small


def test_quality_100_is_lossless_and_less_is_smaller():
    image = Image.effect_noise((64, 64), 80).convert("RGB")
    exact, lossy = to_webp(image, 100), to_webp(image, 60)
    assert np.array_equal(np.asarray(open_image(exact, "x")), np.asarray(image))
    assert len(lossy) < len(exact) and not np.array_equal(np.asarray(open_image(lossy, "x")), np.asarray(image))


def test_a_moved_copy_is_where_its_chances_say():
    black = Image.new("RGB", (100, 100), "white")
    black.paste((0, 0, 0), (45, 45, 55, 55))
    centre = lambda image: np.argwhere(np.asarray(image)[..., 0] < 128).mean(0).tolist()  # noqa: E731
    assert centre(moved(black, (0.5, 0.8, 0.5, 0.5))) == pytest.approx([49.5, 49.5], abs=0.6)
    assert centre(moved(black, (0.5, 0.8, 1.0, 0.0))) == pytest.approx([39.5, 59.5], abs=0.6)
    area = lambda chance: (np.asarray(moved(black, (0.5, chance, 0.5, 0.5)))[..., 0] < 128).sum()  # noqa: E731
    assert area(0.0) == pytest.approx(64, abs=12) and area(0.8) == pytest.approx(100, abs=4)
    line = Image.new("RGB", (100, 100), "white")
    line.paste((0, 0, 0), (10, 48, 90, 52))
    turned = np.argwhere(np.asarray(moved(line, (1.0, 0.8, 0.5, 0.5)))[..., 0] < 128)
    slope = np.polyfit(turned[:, 1], turned[:, 0], 1)[0]
    assert abs(slope) == pytest.approx(np.tan(np.radians(10)), abs=0.02)


RAMP = (np.arange(4 * 6 * 3).reshape(4, 6, 3) * 3).astype(np.uint8)


@pytest.mark.parametrize(
    "given",
    [
        Image.fromarray(RAMP),
        RAMP,
        RAMP.astype(np.float32) / 255,
        torch.from_numpy(RAMP).permute(2, 0, 1),
        torch.from_numpy(RAMP).permute(2, 0, 1).double() / 255,
    ],
    ids=["pillow", "array", "floats", "tensor", "doubles"],
)
def test_every_form_is_the_same_picture(given):
    image = as_image(given)
    assert image.mode == "RGB" and image.size == (6, 4)
    assert np.array_equal(np.asarray(image), RAMP)


def test_paths_bytes_grey_and_transparent_pictures(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "ramp.png")
    for given in (tmp_path / "ramp.png", str(tmp_path / "ramp.png"), (tmp_path / "ramp.png").read_bytes()):
        assert np.array_equal(np.asarray(as_image(given)), RAMP)
    for grey in (RAMP[..., 0], RAMP[..., :1], torch.from_numpy(RAMP[..., 0])[None]):
        assert np.array_equal(np.asarray(as_image(grey)), np.repeat(RAMP[..., :1], 3, axis=2))
    clear = np.concatenate([RAMP, np.zeros((4, 6, 1), np.uint8)], axis=2)
    assert (np.asarray(as_image(clear)) == 255).all()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (RAMP.astype(np.float32), "floats outside"),
        (np.full((4, 6, 3), np.nan), "floats outside"),
        (RAMP.astype(np.int64), "int64"),
        (RAMP.transpose(2, 0, 1), r"array \(3, 4, 6\)"),
        (np.zeros((0, 6, 3), np.uint8), "array"),
        (torch.zeros(2, 3, 4, 4), "tensor"),
        (7, "int"),
        ("no/such.png", "no/such.png"),
    ],
)
def test_what_is_no_picture_is_said(given, words):
    with pytest.raises(ImageError, match=words):
        as_image(given, "it")
