"""Compressed pixel data that are damaged, contradict their header or that nothing decodes: one error each, no crash."""

import numpy as np
import pytest

from heatproof.errors import ImageError, InputError
from heatproof.images import dicom_pixels
from heatproof.images.codestream import Shape, declared_shape
from heatproof.images.dicom import read_dicom
from heatproof.images.dicom_header import read_header
from heatproof.images.read import read_image
from support.files import dataset, encapsulated, gdcm_compressed, jpeg_12_bit, jpeg_of, write_dicom

RAMP = np.linspace(0, 4095, 48 * 32).reshape(48, 32).astype(np.uint16)
GREY = (RAMP // 16).astype(np.uint8)


def test_a_compression_that_nothing_decodes(tmp_path):
    path = encapsulated(tmp_path / "a.dcm", b"\0" * 64, RAMP, "MPEG2MPML")
    with pytest.raises(
        ImageError, match=r"a\.dcm: its compression \(MPEG2 Main Profile.*cannot be decoded here\. Store"
    ):
        read_dicom(path)


def compressed(tmp_path, syntax):
    from pydicom import uid

    if syntax == "JPEGExtended12Bit":
        levels = np.arange(24).reshape(6, 4) * 150
        pixels = np.kron(levels, np.ones((8, 8))).astype(np.uint16)
        return encapsulated(tmp_path / "a.dcm", jpeg_12_bit(levels), pixels, syntax, BitsStored=12, HighBit=11)
    if syntax == "JPEGBaseline8Bit":
        return encapsulated(tmp_path / "a.dcm", jpeg_of(GREY), GREY, syntax)
    if syntax in ("RLELossless", "JPEG2000Lossless"):
        data = dataset(RAMP, BitsStored=12, HighBit=11)
        data.compress(getattr(uid, syntax), encoding_plugin="pylibjpeg")
        data.save_as(tmp_path / "a.dcm", enforce_file_format=True)
        return tmp_path / "a.dcm"
    return gdcm_compressed(write_dicom(tmp_path / "a.dcm", RAMP, BitsStored=12, HighBit=11), syntax)


@pytest.mark.parametrize(
    "syntax",
    [
        *("RLELossless", "JPEG2000Lossless", "JPEGBaseline8Bit", "JPEGExtended12Bit"),
        *("JPEGLosslessProcess14_1", "JPEGLSLossless"),
    ],
)
@pytest.mark.parametrize("kept", [0.03, 0.5, 0.9])
def test_a_compressed_frame_that_breaks_off(tmp_path, caplog, syntax, kept):
    import pydicom
    from pydicom.encaps import encapsulate, get_frame

    data = pydicom.dcmread(compressed(tmp_path, syntax))
    stream = get_frame(data.PixelData, 0, number_of_frames=1)
    data.PixelData = encapsulate([stream[: int(len(stream) * kept)]])
    data.save_as(tmp_path / "cut.dcm")
    with pytest.raises(ImageError, match=r"cut\.dcm: "):
        read_dicom(tmp_path / "cut.dcm")
    assert not caplog.records  # no traceback of a decoder beside the one error


@pytest.mark.parametrize("syntax", ["RLELossless", "JPEG2000Lossless", "JPEGBaseline8Bit"])
def test_damaged_compression_is_an_error_or_an_image_but_no_crash(tmp_path, syntax):
    whole = compressed(tmp_path, syntax).read_bytes()
    start, failed = whole.rindex(b"\xfe\xff\x00\xe0"), 0
    for seed in range(30):
        random, bad = np.random.default_rng(seed), bytearray(whole)
        for at in random.integers(start, len(whole), 3):
            bad[at] = random.integers(256)
        (tmp_path / "bad").write_bytes(bad)
        try:
            read_image(tmp_path / "bad")
        except ImageError:
            failed += 1
    assert failed > 1


def test_data_over_which_gdcm_ends_its_process(tmp_path):
    """Here it is an error like any other."""
    stream = bytearray(jpeg_12_bit(np.arange(6).reshape(2, 3) + 2000))
    stream[stream.index(b"\xff\xc1") + 4] = 243  # a depth that only the check of the header keeps away from it
    header = read_header(
        encapsulated(tmp_path / "a.dcm", bytes(stream), RAMP[:16, :24], "JPEGExtended12Bit").read_bytes(), "a.dcm"
    )
    with pytest.raises(InputError, match=r"GDCM ended with code -\d+"):
        dicom_pixels._by_gdcm(bytes(stream), Shape(16, 24, 1, 12), 16, header)


def test_a_decoder_that_never_ends_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(dicom_pixels, "_SECONDS", 0)
    with pytest.raises(ImageError, match=r"GDCM needs more than 0 s"):
        read_dicom(compressed(tmp_path, "JPEGLSLossless"))


@pytest.mark.parametrize("bits", [6, 7])
def test_depths_that_gdcm_decodes_wrongly_are_refused(tmp_path, bits):
    import pydicom
    from pydicom.encaps import get_frame

    whole = pydicom.dcmread(gdcm_compressed(write_dicom(tmp_path / "a.dcm", GREY), "JPEGLSLossless"))
    stream = bytearray(get_frame(whole.PixelData, 0, number_of_frames=1))
    stream[stream.index(b"\xff\xf7") + 4] = bits
    path = encapsulated(tmp_path / "b.dcm", bytes(stream), GREY, "JPEGLSLossless")
    with pytest.raises(ImageError, match=rf"JPEG-LS of {bits} bits is decoded wrongly"):
        read_dicom(path)


def test_a_codestream_larger_than_its_header_is_refused(tmp_path):
    small, large = np.zeros((8, 8), dtype=np.uint8), np.zeros((900, 700), dtype=np.uint8)
    path = encapsulated(tmp_path / "a.dcm", jpeg_of(large), small, "JPEGBaseline8Bit")
    with pytest.raises(ImageError, match=r"rows=900, columns=700, .* header .* \(8, 8, 1\)"):
        read_dicom(path)


def test_a_codestream_of_absurd_depth_is_refused(tmp_path):
    stream = bytearray(jpeg_of(GREY))
    stream[stream.index(b"\xff\xc0") + 4] = 243
    path = encapsulated(tmp_path / "a.dcm", bytes(stream), GREY, "JPEGLossless")
    with pytest.raises(ImageError, match="bits=243"):
        read_dicom(path)


def test_declared_shape_of_what_others_wrote():
    from pydicom import uid
    from pydicom.encaps import get_frame

    assert declared_shape(jpeg_of(np.zeros((17, 29, 3), dtype=np.uint8))) == (17, 29, 3, 8)
    assert declared_shape(jpeg_12_bit(np.full((2, 3), 7))) == (16, 24, 1, 12)
    data = dataset(RAMP[:40], BitsStored=12, HighBit=11)
    data.compress(uid.JPEG2000Lossless, encoding_plugin="pylibjpeg")
    stream = get_frame(data.PixelData, 0, number_of_frames=1)
    assert declared_shape(stream) == (40, 32, 1, 12)
    wrapped = b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0\0\0\x10ftypjp2 \0\0\0\0" + stream  # the file format around it
    assert declared_shape(wrapped) == (40, 32, 1, 12)
    assert declared_shape(b"\xff\xd8\xff") is declared_shape(b"RLE") is declared_shape(b"") is None
