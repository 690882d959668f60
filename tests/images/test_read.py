"""Pictures and masks: against files written by hand or by Pillow with known values."""

import struct

import numpy as np
import pytest
from PIL import Image

from heatproof.errors import ImageError
from heatproof.images import raw
from heatproof.images.read import read_image, read_mask
from support.files import grey16_png, png_bytes, png_part, write_dicom

GREY = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20


def test_grey_8_bit(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    np.testing.assert_allclose(image.pixels, GREY / 255, atol=1e-7)
    assert (image.bits, image.format, image.size, image.pixels.dtype) == (8, "png", (3, 4), np.float32)


def test_grey_16_bit_keeps_all_its_bits(tmp_path):
    values = np.array([[0, 1, 257], [32768, 65534, 65535]], dtype=np.uint16)
    (tmp_path / "a.png").write_bytes(grey16_png(values))
    image = read_image(tmp_path / "a.png")
    np.testing.assert_allclose(image.pixels, values / 65535, rtol=1e-6)
    assert image.bits == 16


def test_grey_16_bit_with_a_transparent_value(tmp_path):
    values = np.array([[500, 1000], [2000, 500]], dtype=np.uint16)
    (tmp_path / "a.png").write_bytes(grey16_png(values, png_part(b"tRNS", struct.pack(">H", 500))))
    expected = np.array([[0, 1000], [2000, 0]]) / 65535
    np.testing.assert_allclose(read_image(tmp_path / "a.png").pixels, expected, rtol=1e-6)


@pytest.mark.parametrize(("depth", "top"), [(1, 1), (2, 3), (4, 15)])
def test_few_bits(tmp_path, depth, top):
    levels = list(range(min(8 // depth, top + 1)))
    byte = sum(level << (8 - depth * (i + 1)) for i, level in enumerate(levels))
    (tmp_path / "a.png").write_bytes(png_bytes(bytes([0, byte]), len(levels), 1, depth, 0))
    np.testing.assert_allclose(read_image(tmp_path / "a.png").pixels, [np.array(levels) / top], atol=1e-6)


def test_colour_stays_colour_and_equal_channels_are_grey(tmp_path):
    colour = np.stack([GREY, GREY // 2, 255 - GREY], axis=2)
    Image.fromarray(colour).save(tmp_path / "colour.png")
    np.testing.assert_allclose(read_image(tmp_path / "colour.png").pixels, colour / 255, atol=1e-7)
    Image.fromarray(np.repeat(GREY[..., None], 3, axis=2)).save(tmp_path / "grey.png")
    np.testing.assert_allclose(read_image(tmp_path / "grey.png").pixels, GREY / 255, atol=1e-7)


DEEP = np.random.default_rng(0).integers(0, 65536, (2, 2, 4), dtype=np.uint16)


@pytest.mark.parametrize("channels", [3, 4])
def test_16_bit_colour_keeps_all_its_bits(tmp_path, channels):
    values = DEEP[..., :channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    (tmp_path / "a.png").write_bytes(png_bytes(rows, 2, 2, 16, 2 if channels == 3 else 6))
    image = read_image(tmp_path / "a.png")
    alpha = values[..., 3:] / 65535 if channels == 4 else 1
    np.testing.assert_allclose(image.pixels, values[..., :3] / 65535 * alpha, rtol=1e-6)
    assert image.bits == 16


def test_16_bit_colour_filtered_interlaced_and_with_a_transparent_value(tmp_path):
    values = DEEP[..., :3]
    pixel = [[values[y, x].astype(">u2").tobytes() for x in (0, 1)] for y in (0, 1)]
    less = [bytes((a - b) % 256 for a, b in zip(*row[::-1], strict=True)) for row in pixel]  # filter 1: minus the left
    rows = b"".join(b"\1" + left + rest for (left, _), rest in zip(pixel, less, strict=True))
    (tmp_path / "a.png").write_bytes(png_bytes(rows, 2, 2, 16, 2))
    np.testing.assert_allclose(read_image(tmp_path / "a.png").pixels, values / 65535, rtol=1e-6)
    passes = b"\0" + pixel[0][0] + b"\0" + pixel[0][1] + b"\0" + pixel[1][0] + pixel[1][1]
    (tmp_path / "b.png").write_bytes(png_bytes(passes, 2, 2, 16, 2, interlaced=True))
    np.testing.assert_allclose(read_image(tmp_path / "b.png").pixels, values / 65535, rtol=1e-6)
    (tmp_path / "c.png").write_bytes(png_bytes(rows, 2, 2, 16, 2, png_part(b"tRNS", pixel[1][0])))
    expected = values / 65535
    expected[1, 0] = 0
    np.testing.assert_allclose(read_image(tmp_path / "c.png").pixels, expected, rtol=1e-6)


def test_16_bit_grey_with_alpha_is_read_with_8_bits(tmp_path):
    (tmp_path / "a.png").write_bytes(png_bytes(b"\0" + struct.pack(">HH", 256 * 100 + 200, 65535), 1, 1, 16, 4))
    image = read_image(tmp_path / "a.png")
    np.testing.assert_allclose(image.pixels, [[100 / 255]], atol=1e-7)
    assert image.bits == 8


def test_only_dicom_has_frames_and_windows(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "a.png")
    for chosen in ("frame=1", "window=1"):
        with pytest.raises(ImageError, match=rf"a\.png#{chosen}: this is a PNG picture; only DICOM files have a"):
            read_image(f"{tmp_path / 'a.png'}#{chosen}")
    with pytest.raises(ImageError, match=r"a\.png: this is a PNG picture"):
        read_image(tmp_path / "a.png", frame=1)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_alpha_lies_over_black(tmp_path, mode):
    alpha = np.array([[255, 0, 51, 204]] * 3, dtype=np.uint8)
    rgba = Image.fromarray(np.dstack([GREY, GREY, GREY, alpha]))
    (rgba if mode == "RGBA" else rgba.convert(mode)).save(tmp_path / "a.png")
    np.testing.assert_allclose(read_image(tmp_path / "a.png").pixels, GREY / 255 * (alpha / 255), atol=1e-6)


def test_palette_and_its_transparent_entry(tmp_path):
    picture = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8)).convert("P")
    picture.putdata([0, 1, 2])
    picture.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    picture.save(tmp_path / "plain.png")
    expected = np.array([[[10, 20, 30], [40, 50, 60], [70, 80, 90]]]) / 255
    np.testing.assert_allclose(read_image(tmp_path / "plain.png").pixels, expected, atol=1e-6)
    picture.save(tmp_path / "holed.png", transparency=1)
    expected[0, 1] = 0
    np.testing.assert_allclose(read_image(tmp_path / "holed.png").pixels, expected, atol=1e-6)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg(tmp_path, mode):
    smooth = np.add.outer(np.linspace(40, 120, 32), np.linspace(0, 90, 48)).astype(np.uint8)
    rgb = np.stack([smooth, smooth, smooth if mode == "L" else 255 - smooth], axis=2)
    Image.fromarray(rgb).convert(mode).save(tmp_path / "a.jpg", quality=98)
    image = read_image(tmp_path / "a.jpg")
    expected = smooth / 255 if mode == "L" else rgb / 255
    assert image.format == "jpeg"
    np.testing.assert_allclose(image.pixels, expected, atol=0.03)


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [(2, np.fliplr), (3, lambda a: np.rot90(a, 2)), (6, lambda a: np.rot90(a, -1)), (8, np.rot90)],
)
def test_jpeg_orientation_is_applied(tmp_path, orientation, upright):
    stored = np.add.outer(np.linspace(0, 200, 16), np.linspace(0, 50, 24)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "a.jpg", quality=100, exif=exif)
    np.testing.assert_allclose(read_image(tmp_path / "a.jpg").pixels, upright(stored) / 255, atol=0.02)


def test_the_content_decides_not_the_name(tmp_path):
    for name in ("a.dcm", "b.txt", "c"):
        Image.fromarray(GREY).save(tmp_path / name, format="PNG")
        assert read_image(tmp_path / name).format == "png"
    write_dicom(tmp_path / "d.png", GREY)
    assert read_image(tmp_path / "d.png").format == "dicom"


def test_mask_is_whatever_is_not_black(tmp_path):
    stored = np.array([[0, 1, 128, 255]], dtype=np.uint8)
    for mode in ("L", "RGB", "1"):
        Image.fromarray(stored if mode != "1" else stored > 0).convert(mode).save(tmp_path / "a.png")
        np.testing.assert_array_equal(read_mask(tmp_path / "a.png", (1, 4)), [[False, True, True, True]])
    blue = np.zeros((1, 4, 3), dtype=np.uint8)
    blue[0, 2, 2] = 1
    Image.fromarray(blue).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), [[False, False, True, False]])


def test_a_jpeg_mask_is_free_of_ringing(tmp_path):
    mask = np.zeros((32, 32), dtype=bool)
    mask[9:22, 5:27] = True
    Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / "a.jpg", quality=60)
    assert (read_image(tmp_path / "a.jpg").pixels[~mask] > 0).any()  # there is something to be free of
    np.testing.assert_array_equal(read_mask(tmp_path / "a.jpg", (32, 32)), mask)


def test_mask_of_another_size(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "m.png")
    with pytest.raises(ImageError, match=r"m\.png: the mask has 3 x 4 pixels .* its image 30 x 40\. Store the mask"):
        read_mask(tmp_path / "m.png", (30, 40))


def test_a_dicom_mask_is_refused(tmp_path):
    with pytest.raises(ImageError, match=r"m\.dcm: a mask must be a PNG or JPEG"):
        read_mask(write_dicom(tmp_path / "m.dcm", GREY))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_file_cut_anywhere_is_an_error_that_names_it(tmp_path, kind):
    noise = np.random.default_rng(0).integers(0, 255, (20, 20), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole", format=kind)
    whole = (tmp_path / "whole").read_bytes()
    for length in [0, 2, 8, *range(20, len(whole) - 4, max(1, len(whole) // 25))]:
        (tmp_path / "cut").write_bytes(whole[:length])
        with pytest.raises(ImageError, match="cut: "):
            read_image(tmp_path / "cut")


def test_damage_anywhere_in_a_png_is_noticed(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (16, 16), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole", format="PNG")
    whole = (tmp_path / "whole").read_bytes()
    for at in range(8, len(whole), 7):
        (tmp_path / "bad").write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        with pytest.raises(ImageError, match=r"bad: the PNG|pixels are more"):
            read_image(tmp_path / "bad")


def test_missing_file_folder_and_unknown_format(tmp_path):
    with pytest.raises(ImageError, match=r"nowhere\.png: no such file"):
        read_image(tmp_path / "nowhere.png")
    with pytest.raises(ImageError, match=r"cannot be opened"):
        read_image(tmp_path)
    Image.fromarray(GREY).save(tmp_path / "a.png", format="BMP")
    with pytest.raises(ImageError, match=r"a\.png: unknown format\. Images must be PNG, JPEG or DICOM"):
        read_image(tmp_path / "a.png")
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(ImageError, match="the file is empty"):
        read_image(tmp_path / "empty")


def test_the_path_is_named_as_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ImageError, match=r"^x/y\.png: no such file"):
        read_image("x/y.png")


def test_an_image_too_large_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    # 60,000 x 60,000 pixels in a file of a few bytes: the header alone must be enough to say no
    (tmp_path / "bomb.png").write_bytes(png_bytes(b"\0", 60_000, 60_000, 8, 0))
    with pytest.raises(ImageError, match=r"bomb\.png"):
        read_image(tmp_path / "bomb.png")
    monkeypatch.setattr(raw, "MAX_PIXELS", 11)
    Image.fromarray(GREY).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match=r"a\.png: 3 x 4 pixels are more than the 11"):
        read_image(tmp_path / "a.png")


def test_an_animation_is_refused(tmp_path):
    frames = [Image.fromarray(GREY), Image.fromarray(255 - GREY)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    with pytest.raises(ImageError, match=r"a\.png: an animated PNG of 2 frames"):
        read_image(tmp_path / "a.png")


def test_real_radiographs_are_as_pillow_sees_them(shared):
    for path in sorted((shared / "chest" / "images").iterdir())[:40]:
        with Image.open(path) as picture:
            expected = np.asarray(picture.convert("RGB"), dtype=np.float64) / 255
            opaque = picture.mode != "RGBA"
        pixels = read_image(path).pixels
        if opaque:
            found = np.broadcast_to(pixels[..., None], expected.shape) if pixels.ndim == 2 else pixels
            np.testing.assert_allclose(found, expected, atol=1e-6)
