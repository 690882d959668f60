"""DICOM against formulas of the standard written out, other writers' compression, and pydicom's own windowing."""

import numpy as np
import pytest

from heatproof.errors import ImageError
from heatproof.images.dicom import read_dicom
from heatproof.images.greyscale import window
from heatproof.images.read import read_image
from support.files import dataset, lut, write_dicom

RAMP = np.linspace(0, 4095, 48 * 32).reshape(48, 32).astype(np.uint16)


def full_range(values):
    values = np.asarray(values, dtype=np.float64)
    return (values - values.min()) / (values.max() - values.min())


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


@pytest.mark.parametrize(
    "empty",
    [
        {"WindowCenter": "", "WindowWidth": ""},
        {"WindowCenter": "5", "WindowWidth": "0"},
        {"WindowCenter": "5", "WindowWidth": "0.5"},
        {"WindowCenter": "nan", "WindowWidth": "5"},
    ],
)
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


def test_an_entry_beyond_the_depth_of_its_table_is_white(tmp_path):
    path = write_dicom(
        tmp_path / "a.dcm", np.array([[0, 1, 2]], dtype=np.uint16), VOILUTSequence=lut([0, 51, 300], 0, 8)
    )
    np.testing.assert_allclose(read_dicom(path).pixels, [[0, 0.2, 1]], atol=1e-6)


def test_modality_lut_comes_first(tmp_path):
    table = (np.arange(4096)[::-1] // 2).tolist()
    path = write_dicom(
        tmp_path / "a.dcm", RAMP, ModalityLUTSequence=lut(table, 0, 12), WindowCenter="1024", WindowWidth="2048"
    )
    expected = ((np.array(table)[RAMP] - 1023.5) / 2047 + 0.5).clip(0, 1)
    np.testing.assert_allclose(read_dicom(path).pixels, expected, atol=1e-6)


@pytest.mark.parametrize("syntax", ["ImplicitVRLittleEndian", "ExplicitVRBigEndian"])
def test_other_encodings(tmp_path, syntax):
    from pydicom import uid

    big = syntax == "ExplicitVRBigEndian"
    data = dataset(RAMP.astype(">u2") if big else RAMP, PixelData=RAMP.astype(">u2" if big else "<u2").tobytes())
    data.file_meta.TransferSyntaxUID = getattr(uid, syntax)
    data["PixelData"].VR = "OW"
    data.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    np.testing.assert_allclose(read_dicom(tmp_path / "a.dcm").pixels, full_range(RAMP), atol=1e-6)


@pytest.mark.parametrize(("implicit", "little"), [(True, True), (False, True), (False, False)])
def test_a_data_set_without_preamble_and_file_meta(tmp_path, implicit, little):
    data = dataset(RAMP, PixelData=RAMP.astype("<u2" if little else ">u2").tobytes())
    data["PixelData"].VR = "OW"
    del data.file_meta
    data.save_as(tmp_path / "a", implicit_vr=implicit, little_endian=little, enforce_file_format=False)
    np.testing.assert_allclose(read_image(tmp_path / "a").pixels, full_range(RAMP), atol=1e-6)


def test_the_window_is_chosen_by_its_number(tmp_path):
    from pydicom.pixels import apply_voi_lut

    windows = {"WindowCenter": ["2000", "700", "9"], "WindowWidth": ["3000", "900", "0"]}
    path = write_dicom(tmp_path / "a.dcm", RAMP, BitsStored=12, HighBit=11, **windows)
    data = dataset(RAMP, BitsStored=12, HighBit=11, **windows)
    for number in (1, 2):
        expected = apply_voi_lut(RAMP, data, index=number - 1) / 4095
        np.testing.assert_allclose(read_dicom(path, window=number).pixels, expected, atol=1e-6)
        np.testing.assert_array_equal(
            read_image(f"{path}#window={number}").pixels, read_dicom(path, window=number).pixels
        )
    np.testing.assert_array_equal(read_dicom(path).pixels, read_dicom(path, window=1).pixels)
    with pytest.raises(ImageError, match=r"a\.dcm: there is no window 4; the file offers 3"):
        read_dicom(path, window=4)
    with pytest.raises(ImageError, match=r"a\.dcm#window=0: there is no window 0"):
        read_image(f"{path}#window=0")
    with pytest.raises(ImageError, match=r"forbids the width of window 3"):
        read_dicom(path, window=3)


def test_a_chosen_window_goes_before_the_voi_lut(tmp_path):
    window_elements = {"WindowCenter": "1024", "WindowWidth": "2048"}
    path = write_dicom(tmp_path / "a.dcm", RAMP, VOILUTSequence=lut(range(256), 0, 8), **window_elements)
    np.testing.assert_allclose(read_dicom(path, window=1).pixels, window(RAMP, 1024, 2048), atol=1e-6)
    assert np.abs(read_dicom(path).pixels - read_dicom(path, window=1).pixels).max() > 0.4


def test_the_greyscale_pipeline_is_that_of_pydicom(tmp_path):
    """Rescale to negative values, then a VOI LUT that starts below zero."""
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    table = (np.arange(3000) ** 2 // 2200).tolist()  # 0 .. 4088 of 4095
    options = {"RescaleSlope": "1.5", "RescaleIntercept": "-1024", "BitsStored": 12, "HighBit": 11}
    options |= {"VOILUTSequence": lut(table, -700, 12, signed=True)}
    data = dataset(RAMP, **options)
    expected = apply_voi_lut(np.rint(apply_modality_lut(RAMP, data)).astype(int), data) / 4095
    assert (expected == 0).sum() > 50
    np.testing.assert_allclose(read_dicom(write_dicom(tmp_path / "a.dcm", RAMP, **options)).pixels, expected, atol=1e-6)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("kind", ["ModalityLUTSequence", "VOILUTSequence"])
def test_the_first_input_of_a_table_where_the_file_does_not_say_whether_it_is_signed(tmp_path, signed, kind):
    """Implicit VR has no SS and US: 65036 is -500 where the values that come in can be negative."""
    from pydicom import uid

    first = -500 if signed else 65036
    stored = (np.arange(400).reshape(20, 20) + first - 50).astype(np.int16 if signed else np.uint16)
    data = dataset(stored, **{kind: lut(range(0, 600, 2), first, 10, signed=signed)})
    data.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian
    data.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    entries = 2.0 * np.clip(np.arange(400).reshape(20, 20) - 50, 0, 299)
    expected = full_range(entries) if kind.startswith("Modality") else entries / 1023
    np.testing.assert_allclose(read_dicom(tmp_path / "a.dcm").pixels, expected, atol=1e-6)


def test_tables_of_bytes_and_of_65536_entries(tmp_path):
    import pydicom

    item = pydicom.Dataset()
    item.add_new("LUTDescriptor", "US", [4, 100, 8])
    item.add_new("LUTData", "OW", bytes([10, 20, 30, 250]))
    path = write_dicom(tmp_path / "a.dcm", np.array([[99, 101, 102, 400]], dtype=np.uint16), VOILUTSequence=[item])
    np.testing.assert_allclose(read_dicom(path).pixels, np.array([[10, 20, 30, 250]]) / 255, atol=1e-6)
    item.LUTDescriptor, item["LUTData"].value = [3, 100, 8], bytes([10, 20, 30, 0])  # padded to a whole word
    path = write_dicom(tmp_path / "o.dcm", np.array([[99, 101, 102, 400]], dtype=np.uint16), VOILUTSequence=[item])
    np.testing.assert_allclose(read_dicom(path).pixels, np.array([[10, 20, 30, 30]]) / 255, atol=1e-6)
    table = np.arange(65536)[::-1]
    item.LUTDescriptor, item["LUTData"].value = [0, 0, 16], table.astype("<u2").tobytes()
    path = write_dicom(tmp_path / "b.dcm", RAMP, VOILUTSequence=[item])
    np.testing.assert_allclose(read_dicom(path).pixels, (65535 - RAMP.astype(float)) / 65535, atol=1e-6)
    item["LUTData"].value = item["LUTData"].value[:-10]
    with pytest.raises(ImageError, match=r"d\.dcm: a lookup table is shorter than its descriptor"):
        read_dicom(write_dicom(tmp_path / "d.dcm", RAMP, VOILUTSequence=[item]))


def test_a_long_table_whose_descriptor_is_signed(tmp_path):
    """40,000 entries are -25,536 in an element of the type SS, which the first input value below zero asks for."""
    import pydicom

    item = pydicom.Dataset()
    item.add_new("LUTDescriptor", "SS", [40_000, -100, 16])
    item.add_new("LUTData", "OW", np.arange(40_000, dtype="<u2").tobytes())
    path = write_dicom(tmp_path / "a.dcm", RAMP.astype(np.int16), VOILUTSequence=[item])
    np.testing.assert_allclose(read_dicom(path).pixels, (RAMP + 100.0) / 65535, atol=1e-6)


@pytest.mark.parametrize("signed", [False, True])
def test_bits_beside_the_stored_ones_are_ignored(tmp_path, signed):
    """Overlays may lie above (PS3.5 8.1.1), and where HighBit says so the value lies further up."""
    values = (np.arange(192).reshape(12, 16) * 21 - (2048 if signed else 0)).astype(np.int32)
    kind = np.int16 if signed else np.uint16
    above = ((values & 0xFFF) | (np.arange(192).reshape(12, 16) % 16 << 12)).astype(np.uint16).view(kind)
    path = write_dicom(tmp_path / "a.dcm", above, BitsStored=12, HighBit=11)
    np.testing.assert_allclose(read_dicom(path).pixels, full_range(values), atol=1e-6)
    below = ((values & 0xFFF) << 4 | np.arange(192).reshape(12, 16) % 16).astype(np.uint16).view(kind)
    path = write_dicom(tmp_path / "b.dcm", below, BitsStored=12, HighBit=15)
    np.testing.assert_allclose(read_dicom(path).pixels, full_range(values), atol=1e-6)


@pytest.mark.parametrize(("signed", "vr", "value"), [(True, "US", 63536), (False, "SS", -2000)])
def test_padding_of_the_wrong_signedness_is_understood(tmp_path, signed, vr, value):
    stored = (RAMP // 2).astype(np.int16 if signed else np.uint16)
    stored[:, :3] = -2000 if signed else 63536
    data = dataset(stored)
    data.add_new("PixelPaddingValue", vr, value)
    data.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    inside = stored[:, 3:]
    np.testing.assert_allclose(read_dicom(tmp_path / "a.dcm").pixels[:, 3:], full_range(inside), atol=1e-6)


@pytest.mark.parametrize("name", ["SamplesPerPixel", "PixelRepresentation", "HighBit"])
def test_an_element_that_can_be_done_without(tmp_path, name):
    path = write_dicom(tmp_path / "a.dcm", RAMP, **{name: None})
    np.testing.assert_allclose(read_dicom(path).pixels, full_range(RAMP), atol=1e-6)


def test_a_frame_has_its_own_rescale_and_window(tmp_path):
    """Enhanced objects keep both in functional groups, of each frame or of all."""
    import pydicom

    def group(sequence, **elements):
        outer, inner = pydicom.Dataset(), pydicom.Dataset()
        for name, value in elements.items():
            setattr(inner, name, value)
        setattr(outer, sequence, [inner])
        return outer

    frames = np.stack([RAMP, RAMP[::-1]])
    shared = group("FrameVOILUTSequence", WindowCenter="1500", WindowWidth="2500")
    shared.update(group("PixelValueTransformationSequence", RescaleSlope="9", RescaleIntercept="9"))
    own = [
        group("PixelValueTransformationSequence", RescaleSlope=str(k + 1), RescaleIntercept=str(-30 * k))
        for k in (0, 1)
    ]
    path = write_dicom(
        tmp_path / "a.dcm",
        RAMP,
        NumberOfFrames=2,
        PixelData=frames.tobytes(),
        SharedFunctionalGroupsSequence=[shared],
        PerFrameFunctionalGroupsSequence=own,
        WindowCenter="1",  # of the data set, which the frames' own replace
        WindowWidth="2",
    )
    for k in (0, 1):
        expected = window((k + 1.0) * frames[k] - 30 * k, 1500, 2500)
        np.testing.assert_allclose(read_dicom(path, frame=k + 1).pixels, expected, atol=1e-6)


# --- files that cannot be read: one ImageError each, which names the file and no patient ---------------------------


def test_no_pixel_data(tmp_path):
    with pytest.raises(ImageError, match=r"a\.dcm: this DICOM file has no pixel data"):
        read_dicom(write_dicom(tmp_path / "a.dcm", RAMP, PixelData=None))


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
        {"RescaleSlope": "nan"},
        {"HighBit": 16},
        {"BitsStored": 17},
        {"BitsStored": 12, "HighBit": 10},
    ],
)
def test_a_header_that_makes_no_sense(tmp_path, elements):
    with pytest.raises(ImageError, match=r"a\.dcm: "):
        read_dicom(write_dicom(tmp_path / "a.dcm", RAMP, **elements))


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
