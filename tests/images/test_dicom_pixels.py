"""Every way of storing pixels: hand-made files, other writers' files and what other programs compressed."""

from pathlib import Path

import numpy as np
import pytest

from heatproof.errors import ImageError, InputError
from heatproof.images.dicom import read_dicom
from heatproof.images.dicom_header import read_header
from heatproof.images.dicom_pixels import stored_values
from heatproof.images.greyscale import window
from heatproof.images.read import read_image
from support.files import dataset, encapsulated, gdcm_compressed, jpeg_12_bit, jpeg_of, write_dicom

RAMP = np.linspace(0, 4095, 48 * 32).reshape(48, 32).astype(np.uint16)
COLOUR = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
SMOOTH = np.dstack([RAMP // 16, 255 - RAMP // 16, RAMP // 32]).astype(np.uint8)


def stored(path, frame=None):
    return stored_values(read_header(Path(path).read_bytes(), path, frame), frame, path)


# --- compression ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", ["RLELossless", "JPEG2000Lossless", "DeflatedExplicitVRLittleEndian"])
@pytest.mark.parametrize("signed", [False, True])
def test_lossless_compression_changes_nothing(tmp_path, syntax, signed):
    from pydicom import uid

    pixels = (RAMP.astype(int) - 2048 * signed).astype(np.int16 if signed else np.uint16)
    data = dataset(pixels, BitsStored=12, HighBit=11, WindowCenter="2000", WindowWidth="3000")
    if syntax.startswith("Deflated"):
        data.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    else:
        data.compress(getattr(uid, syntax), encoding_plugin="pylibjpeg", generate_instance_uid=False)
    data.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    np.testing.assert_array_equal(stored(tmp_path / "a.dcm"), pixels)
    np.testing.assert_allclose(read_dicom(tmp_path / "a.dcm").pixels, window(pixels, 2000, 3000), atol=1e-6)


@pytest.mark.parametrize("syntax", ["JPEGLosslessProcess14", "JPEGLosslessProcess14_1", "JPEGLSLossless"])
@pytest.mark.parametrize(("bits", "signed"), [(8, False), (10, False), (12, True), (16, False), (16, True)])
def test_jpeg_lossless_and_ls_as_gdcm_writes_them(tmp_path, syntax, bits, signed):
    values = np.linspace(0, 2**bits - 1, 600).reshape(20, 30).astype(int) - 2 ** (bits - 1) * signed
    pixels = values.astype(np.dtype(f"{'i' if signed else 'u'}{1 if bits == 8 else 2}"))
    path = gdcm_compressed(write_dicom(tmp_path / "a.dcm", pixels, BitsStored=bits, HighBit=bits - 1), syntax)
    np.testing.assert_array_equal(stored(path), pixels)


@pytest.mark.parametrize("signed", [False, True])
def test_a_codestream_of_fewer_bits_than_the_header_says(tmp_path, signed):
    import pydicom
    from pydicom.encaps import get_frame

    shown = {"BitsStored": 10, "HighBit": 9}
    values = np.linspace(0, 255, 600).reshape(20, 30).astype(np.uint8)
    plain = pydicom.dcmread(gdcm_compressed(write_dicom(tmp_path / "a.dcm", values), "JPEGLosslessProcess14_1"))
    stream = get_frame(plain.PixelData, 0, number_of_frames=1)
    wide = values.astype(np.int16 if signed else np.uint16)
    path = encapsulated(tmp_path / "b.dcm", stream, wide, "JPEGLosslessSV1", **shown)
    np.testing.assert_array_equal(stored(path), values.view(np.int8 if signed else np.uint8))


@pytest.mark.parametrize("signed", [False, True])
def test_a_codestream_of_more_bits_than_the_header_says(tmp_path, signed):
    """Some writers compress whole words; what lies above the stored bits does not count."""
    import pydicom

    noisy = (RAMP | (np.arange(RAMP.size).reshape(RAMP.shape) % 16 << 12)).astype(np.uint16)
    path = gdcm_compressed(write_dicom(tmp_path / "a.dcm", noisy), "JPEGLosslessProcess14_1")
    data = pydicom.dcmread(path)
    data.BitsStored, data.HighBit, data.PixelRepresentation = 12, 11, int(signed)
    data.save_as(path)
    expected = RAMP.astype(int) - 4096 * (signed & (RAMP >= 2048))
    np.testing.assert_array_equal(stored(path), expected)


def test_jpeg_ls_near_lossless_stays_within_its_error(tmp_path):
    noise = np.random.default_rng(0).integers(0, 4096, (40, 30), dtype=np.uint16)
    plain = write_dicom(tmp_path / "a.dcm", noise, BitsStored=12, HighBit=11)
    error = np.abs(stored(gdcm_compressed(plain, "JPEGLSNearLossless", near=5)).astype(int) - noise)
    assert error.max() == 5


@pytest.mark.parametrize(("plugin", "tolerance"), [("lossless", 0), ("lossy", 40)])
def test_jpeg_2000(tmp_path, plugin, tolerance):
    from pydicom import uid

    data = dataset(RAMP, BitsStored=12, HighBit=11)
    options = {"j2k_cr": [8]} if plugin == "lossy" else {}
    syntax = uid.JPEG2000 if plugin == "lossy" else uid.JPEG2000Lossless
    data.compress(syntax, encoding_plugin="pylibjpeg", **options)
    data.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    error = np.abs(stored(tmp_path / "a.dcm").astype(int) - RAMP)
    assert error.max() <= tolerance
    assert (error > 0).any() == (plugin == "lossy")


def test_jpeg_extended_of_12_bits_is_what_its_coefficients_say(tmp_path):
    levels = np.random.default_rng(3).integers(0, 4096, (5, 4))
    pixels = np.kron(levels, np.ones((8, 8))).astype(np.uint16)
    path = encapsulated(tmp_path / "a.dcm", jpeg_12_bit(levels), pixels, "JPEGExtended12Bit", BitsStored=12, HighBit=11)
    np.testing.assert_array_equal(stored(path), pixels)


@pytest.mark.parametrize("syntax", ["JPEGBaseline8Bit", "JPEGExtended12Bit"])
def test_jpeg_of_8_bits_grey_and_ybr(tmp_path, syntax):
    grey = SMOOTH[..., 0]
    path = encapsulated(tmp_path / "a.dcm", jpeg_of(grey), grey, syntax)
    np.testing.assert_allclose(stored(path), grey, atol=5)
    wide = encapsulated(tmp_path / "w.dcm", jpeg_of(grey), grey.astype(np.uint16), syntax)  # 16 bits allocated
    np.testing.assert_array_equal(stored(wide), stored(path))
    ybr = {"PhotometricInterpretation": "YBR_FULL_422"}
    path = encapsulated(tmp_path / "c.dcm", jpeg_of(SMOOTH), SMOOTH, syntax, **ybr)
    np.testing.assert_allclose(read_dicom(path).pixels, SMOOTH / 255, atol=0.05)


@pytest.fixture(scope="module")
def bundled():
    """The files that pydicom brings along for its own tests."""
    import pydicom

    folder = Path(pydicom.__file__).parent / "data" / "test_files"
    if not (folder / "MR_small.dcm").exists():
        pytest.skip("this pydicom comes without its test files")
    return folder


@pytest.mark.parametrize(
    "encoding", ["RLE", "bigendian", "expb", "implicit", "jp2klossless", "jpeg_ls_lossless", "padded"]
)
@pytest.mark.filterwarnings("ignore:The pixel data is:UserWarning")
def test_one_image_in_many_encodings(bundled, encoding):
    import pydicom

    expected = pydicom.dcmread(bundled / "MR_small.dcm").pixel_array
    np.testing.assert_array_equal(stored(bundled / f"MR_small_{encoding}.dcm"), expected)


@pytest.mark.parametrize("name", ["JPEG-lossy.dcm", "JPGExtended.dcm"])
def test_values_that_pydicom_reports_of_12_bit_files(bundled, name):
    """Its test suite has them from libjpeg, which is not installed here."""
    pixels = stored(bundled / name)
    assert (pixels[420, 140], pixels[230, 120]) == (244, 95)


@pytest.mark.parametrize(
    "name",
    [
        *("ExplVR_BigEnd.dcm", "GDCMJ2K_TextGBR.dcm", "J2K_pixelrep_mismatch.dcm", "SC_rgb_dcmtk_+eb+cr.dcm"),
        *(
            "SC_rgb_dcmtk_+eb+cy+n1.dcm",
            "SC_rgb_dcmtk_+eb+cy+s2.dcm",
            "SC_rgb_gdcm_KY.dcm",
            "SC_rgb_jls_lossy_line.dcm",
        ),
        *("SC_rgb_jls_lossy_sample.dcm", "SC_jpeg_no_color_transform.dcm", "SC_rgb_jpeg_app14_dcmd.dcm"),
        *("SC_rgb_jpeg_gdcm.dcm", "SC_rgb_rle_16bit.dcm", "SC_rgb_rle_32bit.dcm", "SC_ybr_full_422_uncompressed.dcm"),
        *("SC_rgb_small_odd_big_endian.dcm", "examples_jpeg2k.dcm", "examples_overlay.dcm", "image_dfl.dcm"),
        *("JPEGLSNearLossless_08.dcm", "JPEGLSNearLossless_16.dcm", "693_J2KI.dcm", "liver_1frame.dcm"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_others_files_hold_what_pydicom_finds_in_them(bundled, name):
    import pydicom

    np.testing.assert_array_equal(stored(bundled / name), pydicom.dcmread(bundled / name).pixel_array)


@pytest.mark.parametrize(
    "name", ["SC_rgb_rle_16bit_2frame.dcm", "examples_ybr_color.dcm", "rtdose.dcm", "rtdose_rle.dcm"]
)
def test_the_last_frame_of_others_files(bundled, name):
    import pydicom

    frames = pydicom.dcmread(bundled / name).pixel_array
    np.testing.assert_array_equal(stored(bundled / name, len(frames)), frames[-1])


# --- frames --------------------------------------------------------------------------------------------------------

FRAMES = np.stack([RAMP, RAMP[::-1], 4095 - RAMP // 2])


@pytest.fixture(params=["plain", "RLE", "JPEG-LS"])
def cine(request, tmp_path):
    import pydicom

    shown = {"NumberOfFrames": 3, "WindowCenter": "2000", "WindowWidth": "3000", "BitsStored": 12, "HighBit": 11}
    path = write_dicom(tmp_path / "a.dcm", RAMP, PixelData=FRAMES.tobytes(), **shown)
    if request.param == "RLE":
        data = pydicom.dcmread(path)
        data.compress(pydicom.uid.RLELossless, encoding_plugin="pylibjpeg")
        data.save_as(path)
    elif request.param == "JPEG-LS":
        path = gdcm_compressed(path, "JPEGLSLossless")
    return path


def test_a_frame_is_chosen_by_its_number(cine):
    for k, frame in enumerate(FRAMES, 1):
        expected = window(frame, 2000, 3000)
        np.testing.assert_allclose(read_image(cine, frame=k).pixels, expected, atol=1e-6)
        np.testing.assert_allclose(read_image(f"{cine}#frame={k}").pixels, expected, atol=1e-6)
        np.testing.assert_allclose(read_image(f"{cine}#window=1&frame={k}").pixels, expected, atol=1e-6)


def test_a_frame_must_be_chosen_and_exist(cine):
    with pytest.raises(ImageError, match=r"\.dcm: a multi-frame DICOM of 3 frames\. Choose one .*#frame=1"):
        read_image(cine)
    for number in (0, 4):
        with pytest.raises(ImageError, match=rf"\.dcm#frame={number}: there is no frame {number}; the file has 3"):
            read_image(f"{cine}#frame={number}")
    with pytest.raises(InputError, match="frame must be a whole number"):
        read_image(cine, frame=0)
    with pytest.raises(ImageError, match=r"the frame is chosen both in the path and by frame=2"):
        read_image(f"{cine}#frame=1", frame=2)
    with pytest.raises(ImageError, match=r"'fram' cannot be chosen in a path\. Did you mean 'frame'"):
        read_image(f"{cine}#fram=1")
    for twice in ("#frame=1&frame=2", "#frame=", "#frame=one"):
        with pytest.raises(ImageError, match="give frame once, as a whole number"):
            read_image(f"{cine}{twice}")


def test_a_table_of_samples_names_frames(tmp_path):
    from heatproof.datasets.table import load_table

    write_dicom(tmp_path / "a.dcm", RAMP, NumberOfFrames=3, PixelData=FRAMES.tobytes())
    (tmp_path / "t.csv").write_text("sample_id,image,label,patient_id\nx,a.dcm#frame=3,n,p\ny,a.dcm#frame=1,m,p\n")
    paths = load_table(tmp_path / "t.csv").samples["image"]
    for path, k in zip(paths, (2, 0), strict=True):
        expected = (FRAMES[k] - float(FRAMES[k].min())) / (float(FRAMES[k].max()) - float(FRAMES[k].min()))
        np.testing.assert_allclose(read_image(path).pixels, expected, atol=1e-6)


def test_frames_are_found_by_an_extended_offset_table(tmp_path):
    import pydicom
    from pydicom.encaps import encapsulate_extended, get_frame

    def rle(frame):
        data = dataset(frame)
        data.compress(pydicom.uid.RLELossless, encoding_plugin="pylibjpeg")
        return get_frame(data.PixelData, 0, number_of_frames=1)

    streams = [rle(frame) for frame in FRAMES]
    path = encapsulated(tmp_path / "a.dcm", streams, RAMP, "RLELossless", NumberOfFrames=3)
    data = pydicom.dcmread(path)
    # in the file the frames lie in another order than the table gives them
    data.PixelData, offsets, lengths = encapsulate_extended([streams[2], streams[0], streams[1]])
    order = np.array([1, 2, 0])
    data.ExtendedOffsetTable = np.frombuffer(offsets, "<u8")[order].tobytes()
    data.ExtendedOffsetTableLengths = np.frombuffer(lengths, "<u8")[order].tobytes()
    data.save_as(path)
    for k, frame in enumerate(FRAMES, 1):
        np.testing.assert_array_equal(stored(path, k), frame)


def test_the_only_frame_has_the_number_1(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", RAMP, NumberOfFrames=1)
    np.testing.assert_array_equal(read_dicom(path).pixels, read_dicom(path, frame=1).pixels)
    with pytest.raises(ImageError, match="there is no frame 2; the file has 1"):
        read_dicom(path, frame=2)


def test_a_hash_in_a_name_is_no_choice(tmp_path):
    path = write_dicom(tmp_path / "case#7.dcm", RAMP)
    assert read_image(path).size == RAMP.shape


def test_more_frames_than_there_is_data_for(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", RAMP, NumberOfFrames=10**9)
    with pytest.raises(ImageError, match=r"a\.dcm: the pixel data of 3072 bytes cannot hold the frames"):
        read_dicom(path, frame=1)
    path = encapsulated(tmp_path / "b.dcm", b"\xff\xd8\xff\xd9", RAMP, "JPEGBaseline8Bit", NumberOfFrames=10**9)
    with pytest.raises(ImageError, match=r"b\.dcm: the pixel data of \d+ bytes cannot hold the frames"):
        read_dicom(path, frame=1)


# --- colour --------------------------------------------------------------------------------------------------------


def test_rgb_by_pixel_and_by_plane(tmp_path):
    np.testing.assert_allclose(read_dicom(write_dicom(tmp_path / "a.dcm", COLOUR)).pixels, COLOUR / 255, atol=1e-6)
    planes = np.ascontiguousarray(COLOUR.transpose(2, 0, 1)).tobytes()
    path = write_dicom(tmp_path / "b.dcm", COLOUR, PlanarConfiguration=1, PixelData=planes)
    np.testing.assert_allclose(read_dicom(path).pixels, COLOUR / 255, atol=1e-6)
    path = write_dicom(tmp_path / "c.dcm", COLOUR, PlanarConfiguration=None)
    np.testing.assert_allclose(read_dicom(path).pixels, COLOUR / 255, atol=1e-6)
    deep = COLOUR.astype(np.uint16) * 16
    path = write_dicom(tmp_path / "d.dcm", deep, BitsStored=12, HighBit=11)
    np.testing.assert_allclose(read_dicom(path).pixels, deep / 4095, atol=1e-6)


def ybr_of(rgb):
    """PS3.3 C.7.6.3.1.2, rounded to bytes."""
    y = rgb @ np.array([0.299, 0.587, 0.114])
    blue, red = (rgb[..., 2] - y) / 1.772 + 128, (rgb[..., 0] - y) / 1.402 + 128
    return np.rint(np.stack([y, blue, red], axis=-1)).clip(0, 255).astype(np.uint8)


def test_ybr_full_and_422(tmp_path):
    rgb = np.repeat(SMOOTH[:, ::2], 2, axis=1).astype(float)  # pairs of equal pixels lose nothing by sub-sampling
    ybr = ybr_of(rgb)
    path = write_dicom(tmp_path / "a.dcm", ybr, PhotometricInterpretation="YBR_FULL")
    np.testing.assert_allclose(read_dicom(path).pixels, rgb / 255, atol=2.5 / 255)
    planes = np.ascontiguousarray(ybr.transpose(2, 0, 1)).tobytes()
    planar = {"PhotometricInterpretation": "YBR_FULL", "PlanarConfiguration": 1, "PixelData": planes}
    np.testing.assert_array_equal(
        read_dicom(write_dicom(tmp_path / "p.dcm", ybr, **planar)).pixels, read_dicom(path).pixels
    )
    pairs = ybr.reshape(-1, 2, 3)
    halved = np.stack([pairs[:, 0, 0], pairs[:, 1, 0], pairs[:, 0, 1], pairs[:, 0, 2]], axis=1)
    half = {"PhotometricInterpretation": "YBR_FULL_422", "PixelData": halved.tobytes()}
    np.testing.assert_array_equal(
        read_dicom(write_dicom(tmp_path / "h.dcm", ybr, **half)).pixels, read_dicom(path).pixels
    )


@pytest.mark.parametrize("syntax", ["RLELossless", "JPEG2000Lossless", "JPEGLosslessProcess14_1", "JPEGLSLossless"])
def test_compressed_colour(tmp_path, syntax):
    import pydicom

    path = write_dicom(tmp_path / "a.dcm", SMOOTH)
    if syntax.startswith(("RLE", "JPEG2000")):
        data = pydicom.dcmread(path)
        data.compress(getattr(pydicom.uid, syntax), encoding_plugin="pylibjpeg")
        data.save_as(path)
    else:
        path = gdcm_compressed(path, syntax)
    np.testing.assert_array_equal(stored(path), SMOOTH)


@pytest.mark.parametrize(
    ("name", "syntax", "options"), [("YBR_RCT", "JPEG2000Lossless", {}), ("YBR_ICT", "JPEG2000", {"j2k_cr": [2]})]
)
def test_the_colour_transforms_of_jpeg_2000(tmp_path, name, syntax, options):
    from pydicom import uid

    data = dataset(SMOOTH, PhotometricInterpretation=name)
    data.compress(getattr(uid, syntax), SMOOTH, encoding_plugin="pylibjpeg", **options)
    assert data.PhotometricInterpretation == name
    data.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    np.testing.assert_allclose(stored(tmp_path / "a.dcm"), SMOOTH, atol=0 if name == "YBR_RCT" else 3)


@pytest.mark.parametrize("name", ["YBR_RCT", "YBR_PARTIAL_420", "CMYK"])
def test_a_colour_model_that_does_not_fit_is_refused(tmp_path, name):
    """Taken for RGB, it would show the wrong colours without a word."""
    with pytest.raises(ImageError, match=r"a\.dcm: .*(does not go with|colour model)"):
        read_dicom(write_dicom(tmp_path / "a.dcm", COLOUR, PhotometricInterpretation=name))


@pytest.mark.parametrize("name", ["YBR_FULL", "YBR_FULL_422"])
def test_ybr_that_gdcm_decodes(tmp_path, name):
    """A codestream holds all its samples, also where the header speaks of sub-sampling."""
    import pydicom

    ybr = ybr_of(SMOOTH)
    plain = read_dicom(write_dicom(tmp_path / "a.dcm", ybr, PhotometricInterpretation="YBR_FULL"))
    path = gdcm_compressed(write_dicom(tmp_path / "b.dcm", ybr), "JPEGLosslessProcess14_1")  # as it would write RGB
    data = pydicom.dcmread(path)
    data.PhotometricInterpretation = name
    data.save_as(path)
    np.testing.assert_array_equal(read_dicom(path).pixels, plain.pixels)


def test_ybr_of_more_than_8_bits_is_refused(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", COLOUR.astype(np.uint16), PhotometricInterpretation="YBR_FULL")
    with pytest.raises(ImageError, match=r"a\.dcm: YBR_FULL in 16 bits is not supported"):
        read_dicom(path)


def palette_of(kind, tables, first=0, bits=16):
    names = ("Red", "Green", "Blue")
    found = {f"{name}PaletteColorLookupTableDescriptor": [len(tables[0]), first, bits] for name in names}
    values = {
        name: np.asarray(table).astype(f"<u{bits // 8}").tobytes() for name, table in zip(names, tables, strict=True)
    }
    return found | {f"{kind}{name}PaletteColorLookupTableData": value for name, value in values.items()}


@pytest.mark.parametrize("bits", [8, 16])
def test_palette(tmp_path, bits):
    index = np.arange(20, dtype=np.uint8).reshape(4, 5)
    tables = np.random.default_rng(1).integers(0, 2**bits, (3, 12))
    elements = palette_of("", tables, first=4, bits=bits) | {"PhotometricInterpretation": "PALETTE COLOR"}
    path = write_dicom(tmp_path / "a.dcm", index, **elements)
    expected = tables[:, np.clip(index.astype(int) - 4, 0, 11)].transpose(1, 2, 0) / (2**bits - 1)
    np.testing.assert_allclose(read_dicom(path).pixels, expected, atol=1e-6)


def test_palette_in_segments(tmp_path):
    """Discrete: 3 given entries. Linear: 5 more up to 1000, as PS3.3 C.7.9.2 has it."""
    segments = [0, 3, 50, 60, 100, 1, 5, 600]
    red = [50, 60, 100, 200, 300, 400, 500, 600]
    elements = palette_of("Segmented", [segments] * 3) | {"PhotometricInterpretation": "PALETTE COLOR"}
    for name in ("Red", "Green", "Blue"):
        elements[f"{name}PaletteColorLookupTableDescriptor"] = [8, 2, 16]
    index = np.arange(12, dtype=np.uint8).reshape(3, 4)
    path = write_dicom(tmp_path / "a.dcm", index, **elements)
    expected = np.array(red)[np.clip(index.astype(int) - 2, 0, 7)] / 65535
    np.testing.assert_allclose(read_dicom(path).pixels, expected, atol=1e-7)


def test_the_palette_of_another_writer(bundled):
    import pydicom
    from pydicom.pixels import apply_color_lut

    data = pydicom.dcmread(bundled / "examples_palette.dcm")
    expected = apply_color_lut(data.pixel_array, data) / 65535
    np.testing.assert_allclose(read_dicom(bundled / "examples_palette.dcm").pixels, expected, atol=1e-6)
