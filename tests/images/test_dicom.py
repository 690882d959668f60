"""DICOM against formulas of the standard written out, other writers' compression, and pydicom's own windowing."""

import io
import logging
import warnings

import numpy as np
import pytest
from PIL import Image

from heatproof.errors import ImageError
from heatproof.images import raw
from heatproof.images.codestream import declared_shape
from heatproof.images.dicom import read_dicom, window
from heatproof.images.read import read_image
from support.files import PATIENT, dataset, write_dicom

RAMP = np.linspace(0, 4095, 48 * 32).reshape(48, 32).astype(np.uint16)


def full_range(values):
    values = np.asarray(values, dtype=np.float64)
    return (values - values.min()) / (values.max() - values.min())


def lut(entries, first, bits):
    import pydicom

    item = pydicom.Dataset()
    item.LUTDescriptor = [len(entries), first, bits]
    item["LUTDescriptor"].VR = "US"
    item.LUTData = list(entries)
    item["LUTData"].VR = "US"
    return [item]


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("centre", "width"), [(2047.5, 4096), (900, 333.5), (-50, 800)])
def test_windows_are_those_of_the_standard(function, centre, width):
    from pydicom.pixels import apply_windowing

    data = dataset(RAMP, BitsStored=12, WindowCenter=str(centre), WindowWidth=str(width), VOILUTFunction=function)
    expected = apply_windowing(RAMP, data) / 4095  # pydicom's output range is that of the stored bits
    np.testing.assert_allclose(window(RAMP, centre, width, function), expected, atol=1e-6)


def test_window_of_width_one_is_a_step():
    np.testing.assert_array_equal(window(np.array([9, 10, 11]), 10.5, 1), [0, 0, 1])


@pytest.mark.parametrize("function", [None, "SIGMOID"])
def test_the_first_window_is_taken_after_the_rescale(tmp_path, function):
    stored = (RAMP.astype(np.int32) - 2000).astype(np.int16)
    options = {} if function is None else {"VOILUTFunction": function}
    path = write_dicom(
        tmp_path / "a.dcm",
        stored,
        RescaleSlope="2",
        RescaleIntercept="-100",
        WindowCenter=["500", "0"],
        WindowWidth=["3000", "1"],
        **options,
    )
    modality = 2.0 * stored - 100
    linear = ((modality - 499.5) / 2999 + 0.5).clip(0, 1)
    expected = linear if function is None else 1 / (1 + np.exp(-4 * (modality - 500) / 3000))
    np.testing.assert_allclose(read_dicom(path).pixels, expected, atol=1e-6)


@pytest.mark.parametrize("bits", [8, 10, 12, 15, 16])
@pytest.mark.parametrize("signed", [False, True])
def test_without_a_window_the_full_range_is_shown(tmp_path, bits, signed):
    kind = np.dtype(("i" if signed else "u") + ("1" if bits == 8 else "2"))
    low, high = (-(2 ** (bits - 1)) + 3, 2 ** (bits - 1) - 1) if signed else (3, 2**bits - 1)
    stored = np.linspace(low, high, 120).reshape(10, 12).astype(kind)
    image = read_dicom(write_dicom(tmp_path / "a.dcm", stored, BitsStored=bits, HighBit=bits - 1))
    np.testing.assert_allclose(image.pixels, full_range(stored), atol=1e-6)
    assert (image.bits, image.format) == (bits, "dicom")


@pytest.mark.parametrize("empty", [{"WindowCenter": "", "WindowWidth": ""}, {"WindowCenter": "5", "WindowWidth": "0"}])
def test_a_window_that_is_none_counts_as_absent(tmp_path, empty):
    path = write_dicom(tmp_path / "a.dcm", RAMP, **empty)
    np.testing.assert_allclose(read_dicom(path).pixels, full_range(RAMP), atol=1e-6)


def test_padding_does_not_stretch_the_range(tmp_path):
    stored = RAMP.astype(np.int16)
    stored[:, :4] = -2000
    stored[:, 4:6] = -1990
    path = write_dicom(tmp_path / "a.dcm", stored, PixelPaddingValue=-2000, PixelPaddingRangeLimit=-1990)
    inside = stored[:, 6:].astype(float)
    expected = ((stored - inside.min()) / (inside.max() - inside.min())).clip(0, 1)
    np.testing.assert_allclose(read_dicom(path).pixels, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("photometric", "shape", "inverted"),
    [
        ("MONOCHROME2", None, False),
        ("MONOCHROME2", "IDENTITY", False),
        ("MONOCHROME2", "INVERSE", True),
        ("MONOCHROME1", None, True),
        ("MONOCHROME1", "INVERSE", True),  # consistent: inverted once, not twice
        ("MONOCHROME1", "IDENTITY", True),
    ],
)
def test_polarity(tmp_path, photometric, shape, inverted):
    options = {} if shape is None else {"PresentationLUTShape": shape}
    path = write_dicom(tmp_path / "a.dcm", RAMP, PhotometricInterpretation=photometric, **options)
    shown = full_range(RAMP)
    np.testing.assert_allclose(read_dicom(path).pixels, 1 - shown if inverted else shown, atol=1e-6)


def test_voi_lut_goes_before_the_window(tmp_path):
    table = np.sqrt(np.arange(3000)) * 4  # 0 .. 219 of 255, 8 bits deep, for the values 500 .. 3499
    path = write_dicom(
        tmp_path / "a.dcm",
        RAMP,
        VOILUTSequence=lut(table.astype(int).tolist(), 500, 8),
        WindowCenter="1",
        WindowWidth="2",
    )
    expected = table.astype(int)[np.clip(RAMP.astype(int) - 500, 0, 2999)] / 255
    np.testing.assert_allclose(read_dicom(path).pixels, expected, atol=1e-6)


def test_modality_lut_comes_first(tmp_path):
    table = (np.arange(4096)[::-1] // 2).tolist()
    path = write_dicom(
        tmp_path / "a.dcm", RAMP, ModalityLUTSequence=lut(table, 0, 12), WindowCenter="1024", WindowWidth="2048"
    )
    expected = ((np.array(table)[RAMP] - 1023.5) / 2047 + 0.5).clip(0, 1)
    np.testing.assert_allclose(read_dicom(path).pixels, expected, atol=1e-6)


@pytest.mark.parametrize("syntax", ["RLELossless", "JPEG2000Lossless", "DeflatedExplicitVRLittleEndian"])
def test_lossless_compression_changes_nothing(tmp_path, syntax):
    from pydicom import uid

    data = dataset(RAMP, BitsStored=12, HighBit=11, WindowCenter="2000", WindowWidth="3000")
    if syntax.startswith("Deflated"):
        data.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    else:
        data.compress(getattr(uid, syntax), encoding_plugin="pylibjpeg", generate_instance_uid=False)
    data.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    np.testing.assert_allclose(read_dicom(tmp_path / "a.dcm").pixels, window(RAMP, 2000, 3000), atol=1e-6)


@pytest.mark.parametrize(
    "syntax", ["JPEGLosslessProcess14", "JPEGLosslessProcess14_1", "JPEGLSLossless", "JPEGLSNearLossless"]
)
def test_jpeg_lossless_and_ls_as_gdcm_writes_them(tmp_path, syntax):
    import gdcm

    path = write_dicom(tmp_path / "plain.dcm", RAMP, BitsStored=12, HighBit=11, WindowCenter="2000", WindowWidth="3000")
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(path))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(str(tmp_path / "a.dcm"))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    tolerance = 2e-3 if syntax.endswith("NearLossless") else 1e-6
    np.testing.assert_allclose(read_dicom(tmp_path / "a.dcm").pixels, window(RAMP, 2000, 3000), atol=tolerance)


def encapsulated(path, stream, pixels, syntax, **elements):
    from pydicom import uid
    from pydicom.encaps import encapsulate

    data = dataset(pixels, **elements)
    data.file_meta.TransferSyntaxUID = getattr(uid, syntax)
    data.PixelData = encapsulate([stream])
    data["PixelData"].VR = "OB"
    data.save_as(path, enforce_file_format=True)
    return path


def jpeg_of(pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="JPEG", quality=97)
    return stream.getvalue()


def test_jpeg_baseline_grey_and_ybr(tmp_path):
    grey = (RAMP // 16).astype(np.uint8)
    path = encapsulated(tmp_path / "a.dcm", jpeg_of(grey), grey, "JPEGBaseline8Bit")
    np.testing.assert_allclose(read_dicom(path).pixels, full_range(grey), atol=0.02)
    colour = np.dstack([grey, 255 - grey, grey // 2])
    path = encapsulated(
        tmp_path / "c.dcm", jpeg_of(colour), colour, "JPEGBaseline8Bit", PhotometricInterpretation="YBR_FULL_422"
    )
    np.testing.assert_allclose(read_dicom(path).pixels, colour / 255, atol=0.05)


@pytest.mark.parametrize("syntax", ["ImplicitVRLittleEndian", "ExplicitVRBigEndian"])
def test_other_encodings(tmp_path, syntax):
    from pydicom import uid

    big = syntax == "ExplicitVRBigEndian"
    data = dataset(RAMP.astype(">u2") if big else RAMP, PixelData=RAMP.astype(">u2" if big else "<u2").tobytes())
    data.file_meta.TransferSyntaxUID = getattr(uid, syntax)
    data["PixelData"].VR = "OW"
    data.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    np.testing.assert_allclose(read_dicom(tmp_path / "a.dcm").pixels, full_range(RAMP), atol=1e-6)


def test_a_data_set_without_preamble_and_file_meta(tmp_path):
    data = dataset(RAMP)
    del data.file_meta
    data.save_as(tmp_path / "a", implicit_vr=True, little_endian=True, enforce_file_format=False)
    np.testing.assert_allclose(read_image(tmp_path / "a").pixels, full_range(RAMP), atol=1e-6)


def test_rgb_planar_and_palette(tmp_path):
    colour = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    np.testing.assert_allclose(read_dicom(write_dicom(tmp_path / "a.dcm", colour)).pixels, colour / 255, atol=1e-6)
    planes = np.ascontiguousarray(colour.transpose(2, 0, 1)).tobytes()
    path = write_dicom(tmp_path / "b.dcm", colour, PlanarConfiguration=1, PixelData=planes)
    np.testing.assert_allclose(read_dicom(path).pixels, colour / 255, atol=1e-6)
    index = np.arange(12, dtype=np.uint8).reshape(3, 4)
    table = np.random.default_rng(1).integers(0, 65536, (3, 16), dtype=np.uint16)
    palette = {f"{name}PaletteColorLookupTableDescriptor": [16, 0, 16] for name in ("Red", "Green", "Blue")}
    palette |= {
        f"{name}PaletteColorLookupTableData": table[k].tobytes() for k, name in enumerate(("Red", "Green", "Blue"))
    }
    path = write_dicom(tmp_path / "c.dcm", index, PhotometricInterpretation="PALETTE COLOR", **palette)
    np.testing.assert_allclose(read_dicom(path).pixels, table[:, index].transpose(1, 2, 0) / 65535, atol=1e-6)


# --- files that cannot be read: one ImageError each, which names the file and no patient ---------------------------


def test_no_pixel_data(tmp_path):
    with pytest.raises(ImageError, match=r"a\.dcm: this DICOM file has no pixel data"):
        read_dicom(write_dicom(tmp_path / "a.dcm", RAMP, PixelData=None))


def test_multi_frame_says_how_many(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", RAMP, NumberOfFrames=7, PixelData=RAMP.tobytes() * 7)
    with pytest.raises(ImageError, match=r"a\.dcm: a multi-frame DICOM of 7 frames"):
        read_dicom(path)


def test_one_declared_frame_is_no_multi_frame(tmp_path):
    assert read_dicom(write_dicom(tmp_path / "a.dcm", RAMP, NumberOfFrames=1)).size == RAMP.shape


@pytest.mark.parametrize("name", ["Rows", "PhotometricInterpretation", "BitsStored"])
def test_a_header_that_lacks_what_pixels_need(tmp_path, name):
    with pytest.raises(ImageError, match=rf"a\.dcm: the DICOM header has no usable {name}"):
        read_dicom(write_dicom(tmp_path / "a.dcm", RAMP, **{name: None}))


@pytest.mark.parametrize(
    "elements",
    [
        {"BitsAllocated": None},
        {"PhotometricInterpretation": "MAGIC"},
        {"VOILUTFunction": "CUBIC", "WindowCenter": "5", "WindowWidth": "9"},
        {"PhotometricInterpretation": "PALETTE COLOR"},
        {"SamplesPerPixel": 3, "PlanarConfiguration": 0},
    ],
)
def test_a_header_that_makes_no_sense(tmp_path, elements):
    with pytest.raises(ImageError, match=r"a\.dcm: "):
        read_dicom(write_dicom(tmp_path / "a.dcm", RAMP, **elements))


def test_absurd_sizes_are_refused_before_decoding(tmp_path, monkeypatch):
    path = write_dicom(tmp_path / "a.dcm", RAMP, Rows=60_000, Columns=60_000)
    with pytest.raises(ImageError, match="60000 x 60000 pixels are more than"):
        read_dicom(path)
    monkeypatch.setattr(raw, "MAX_PIXELS", RAMP.size - 1)
    with pytest.raises(ImageError, match="48 x 32 pixels are more than"):
        read_dicom(write_dicom(tmp_path / "a.dcm", RAMP))


def test_a_codestream_larger_than_its_header_is_refused(tmp_path):
    small, large = np.zeros((8, 8), dtype=np.uint8), np.zeros((900, 700), dtype=np.uint8)
    path = encapsulated(tmp_path / "a.dcm", jpeg_of(large), small, "JPEGBaseline8Bit")
    with pytest.raises(ImageError, match=r"rows=900, columns=700, .* header .* \(8, 8, 1\)"):
        read_dicom(path)


def test_a_codestream_of_absurd_depth_is_refused(tmp_path):
    grey = (RAMP // 16).astype(np.uint8)
    stream = bytearray(jpeg_of(grey))
    stream[stream.index(b"\xff\xc0") + 4] = 243  # GDCM ends the process over it
    path = encapsulated(tmp_path / "a.dcm", bytes(stream), grey, "JPEGLossless")
    with pytest.raises(ImageError, match="bits=243"):
        read_dicom(path)


def test_declared_shape_of_what_others_wrote():
    colour = np.zeros((17, 29, 3), dtype=np.uint8)
    assert declared_shape(jpeg_of(colour)) == (17, 29, 3, 8)
    data = dataset(RAMP[:40], BitsStored=12, HighBit=11)
    from pydicom import uid
    from pydicom.encaps import get_frame

    data.compress(uid.JPEG2000Lossless, encoding_plugin="pylibjpeg")
    assert declared_shape(get_frame(data.PixelData, 0, number_of_frames=1)) == (40, 32, 1, 12)
    assert declared_shape(b"\xff\xd8\xff") is declared_shape(b"RLE") is declared_shape(b"") is None


def test_a_file_cut_anywhere_is_an_error_without_the_patient(tmp_path, caplog):
    """Also nothing in the warnings and the log, whatever pydicom thinks of the header it passes over."""
    data = dataset(RAMP, BitsStored=12, HighBit=11, StudyDate="notadate" + PATIENT, StudyID="x" * 90 + PATIENT)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data.save_as(tmp_path / "whole", enforce_file_format=True)
    whole = (tmp_path / "whole").read_bytes()
    caplog.clear()
    for length in [140, *range(200, len(whole) - 2, 97), len(whole) - 2]:
        (tmp_path / "cut").write_bytes(whole[:length])
        with caplog.at_level(logging.DEBUG), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with pytest.raises(ImageError, match="cut: ") as error:
                read_image(tmp_path / "cut")
        said = f"{error.value}{caplog.text}{[str(w.message) for w in caught]}"
        assert not any(secret in said for secret in (PATIENT, "Doe", "ID-4711", "19701231"))


def test_what_identifies_is_never_parsed(tmp_path):
    """An age that claims to be a float of four bytes would raise, and quote them, when parsed."""
    path = write_dicom(tmp_path / "a.dcm", RAMP, PatientAge="045Y")
    age = b"\x10\x00\x10\x10"
    path.write_bytes(path.read_bytes().replace(age + b"AS", age + b"FD"))
    np.testing.assert_allclose(read_dicom(path).pixels, full_range(RAMP), atol=1e-6)


@pytest.mark.parametrize("syntax", ["RLELossless", "JPEG2000Lossless"])
def test_damaged_compression_is_an_error_or_an_image_but_no_crash(tmp_path, syntax):
    from pydicom import uid

    data = dataset(RAMP, BitsStored=12, HighBit=11)
    data.compress(getattr(uid, syntax), encoding_plugin="pylibjpeg")
    data.save_as(tmp_path / "whole", enforce_file_format=True)
    whole = (tmp_path / "whole").read_bytes()
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
    assert failed > 3


# --- real files ----------------------------------------------------------------------------------------------------


def test_files_that_differ_in_their_tag_are_each_others_inverse(shared):
    one, other = (read_dicom(path) for path in sorted((shared / "dicom").glob("torchxrayvision*")))
    np.testing.assert_allclose(one.pixels, 1 - other.pixels, atol=1e-6)


def test_monochrome1_with_inverse_shape_is_upright(shared):
    import pydicom

    (path,) = (shared / "dicom").glob("highdicom*")
    stored = pydicom.dcmread(path).pixel_array.astype(float)
    pixels = read_dicom(path).pixels
    np.testing.assert_allclose(pixels, 1 - ((stored - 127.5) / 255 + 0.5), atol=1e-6)
    assert np.median(pixels[:4]) < 0.1  # air beside the patient is black


@pytest.mark.parametrize(("name", "centre", "width"), [("RG1", 15000, 30000), ("RG3", 550, 1024)])
def test_jpeg_2000_radiographs(shared, name, centre, width):
    import pydicom

    (path,) = (shared / "dicom").glob(f"*{name}*")
    stored = pydicom.dcmread(path).pixel_array.astype(float)
    expected = 1 - ((stored - (centre - 0.5)) / (width - 1) + 0.5).clip(0, 1)
    np.testing.assert_allclose(read_dicom(path).pixels, expected, atol=1e-6)
