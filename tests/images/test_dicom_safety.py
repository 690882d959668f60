"""What a file must never do: name its patient, fill the memory, or change how the process warns and logs."""

import logging
import os
import struct
import threading
import traceback
import tracemalloc
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from heatproof.errors import ImageError
from heatproof.images import dicom_header, raw
from heatproof.images.dicom import read_dicom
from heatproof.images.read import read_image
from support.files import PATIENT, dataset, encapsulated, gdcm_compressed, jpeg_of, png_bytes, write_dicom

RAMP = np.linspace(0, 4095, 48 * 32).reshape(48, 32).astype(np.uint16)
SMALL = RAMP[:8, :8]

# --- no patient in any message -------------------------------------------------------------------------------------

TEXT, DATE, TIME, AGE, ROOT, NUMBER = "Zqxj^Marker", "19010203", "010203", "099Y", "1.2.826.0.1.77777", "471147"
MARKERS = ("zqxj", "marker", DATE, TIME, AGE, "77777", NUMBER)
VALUES = {"DA": DATE, "TM": TIME, "DT": DATE + TIME, "AS": AGE, "UI": ROOT, "IS": NUMBER, "DS": NUMBER}
VALUES |= dict.fromkeys(("PN", "LO", "SH", "ST", "LT", "UT", "UC", "AE"), TEXT)
VALUES["CS"] = "ZQXJ_MARKER"


def identified(**elements):
    """A data set with a marker in every element of the groups that describe patient, study, series and procedure."""
    from pydicom.datadict import DicomDictionary

    data = dataset(SMALL, BitsStored=12, HighBit=11, WindowCenter="2000", WindowWidth="3000", **elements)
    for tag, (kind, *_) in DicomDictionary.items():
        if tag >> 16 in (0x0008, 0x0010, 0x0012, 0x0020, 0x0032, 0x0038, 0x0040, 0x4008) and kind in VALUES:
            data.add_new(tag, kind, VALUES[kind])
    del data.SpecificCharacterSet
    return data


def written(path, data):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data.save_as(path, enforce_file_format=True)
    return path.read_bytes()


@pytest.fixture
def said(tmp_path, caplog, capfd):
    """What reading some bytes says anywhere: the error with its traceback, warnings, log and both outputs."""

    def read(content, **choice):
        (tmp_path / "case.dcm").write_bytes(content)
        caplog.clear()
        capfd.readouterr()
        text = ""
        with caplog.at_level(logging.DEBUG), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                read_image(tmp_path / "case.dcm", **choice)
            except ImageError as error:
                text = "".join(traceback.format_exception(error))
        return f"{text}{caplog.text}{[str(w.message) for w in caught]}{''.join(capfd.readouterr())}", bool(text)

    return read


def innocent(text):
    found = [marker for marker in MARKERS if marker in text.lower().replace("\0", "")]
    assert not found, f"{found} in: {text}"


def test_there_is_something_to_hide(tmp_path):
    whole = written(tmp_path / "a.dcm", identified())
    assert whole.count(TEXT.encode()) > 200
    assert read_dicom(tmp_path / "a.dcm").size == SMALL.shape


@pytest.mark.parametrize("compression", ["plain", "JPEGLosslessProcess14_1", "RLELossless", "Deflated"])
def test_a_file_cut_anywhere_is_an_error_without_the_patient(tmp_path, said, compression):
    import pydicom

    data = identified()
    if compression == "RLELossless":
        data.compress(pydicom.uid.RLELossless, encoding_plugin="pylibjpeg")
    elif compression == "Deflated":
        data.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    elif compression.startswith("JPEG"):
        plain = write_dicom(tmp_path / "plain.dcm", SMALL, BitsStored=12, HighBit=11)
        other = pydicom.dcmread(gdcm_compressed(plain, compression))
        data.file_meta.TransferSyntaxUID, data["PixelData"] = other.file_meta.TransferSyntaxUID, other["PixelData"]
    whole = written(tmp_path / "a.dcm", data)
    for length in [140, *range(200, len(whole) - 16, max(97, len(whole) // 40))]:
        text, failed = said(whole[:length])
        assert failed, length
        innocent(text)


def test_damage_anywhere_names_no_patient(tmp_path, said):
    whole = written(tmp_path / "a.dcm", identified())
    failed = 0
    for seed in range(150):
        random, bad = np.random.default_rng(seed), bytearray(whole)
        for at in random.integers(132, len(whole), 1 + seed % 12):
            bad[at] = random.integers(256)
        text, error = said(bytes(bad))
        innocent(text)
        failed += error
    assert 20 < failed < 150


# elements that are read, each as it is written in explicit VR: tag and representation
READ = {
    "PhotometricInterpretation": (0x00280004, "CS"),
    "NumberOfFrames": (0x00280008, "IS"),
    "Rows": (0x00280010, "US"),
    "WindowCenter": (0x00281050, "DS"),
    "RescaleSlope": (0x00281053, "DS"),
    "VOILUTFunction": (0x00281056, "CS"),
    "PresentationLUTShape": (0x20500020, "CS"),
    "ModalityLUTSequence": (0x00283000, "SQ"),
    "SpecificCharacterSet": (0x00080005, "CS"),
}


@pytest.mark.parametrize("name", sorted(READ))
@pytest.mark.parametrize("choice", [{}, {"frame": 2}, {"window": 2}])
def test_a_name_that_stands_where_a_value_belongs_is_not_quoted(tmp_path, said, name, choice):
    tag, kind = READ[name]
    value = TEXT.encode() + b" "
    long = kind == "SQ"
    element = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + kind.encode()
    element += (struct.pack("<HL", 0, len(value)) if long else struct.pack("<H", len(value))) + value
    data = identified()
    if name in data and name != "SpecificCharacterSet":
        delattr(data, name)
    whole = written(tmp_path / "a.dcm", data)
    at = whole.index(b"\x28\x00\x02\x00US") if tag >> 16 == 0x0028 else whole.index(b"\xe0\x7f\x10\x00OW")
    text, failed = said(whole[:at] + element + whole[at:], **choice)
    innocent(text)
    assert failed or name in ("PresentationLUTShape", "SpecificCharacterSet")


@pytest.mark.parametrize("syntax", [TEXT + "\0", ROOT + "\0", "1.2.840.10008.1.2.4.70"])
def test_a_transfer_syntax_that_is_none_is_not_quoted(tmp_path, said, syntax):
    whole = written(tmp_path / "a.dcm", identified())
    tag = b"\x02\x00\x10\x00UI"
    at = whole.index(tag)
    end = at + 8 + int.from_bytes(whole[at + 6 : at + 8], "little")
    text, failed = said(whole[:at] + tag + struct.pack("<H", len(syntax)) + syntax.encode() + whole[end:])
    innocent(text)
    assert failed


def test_what_identifies_is_never_decoded(tmp_path):
    """An age that claims to be a float of four bytes would raise, and quote them, when decoded."""
    path = write_dicom(tmp_path / "a.dcm", RAMP, PatientAge="045Y", PatientName=PATIENT)
    age = b"\x10\x00\x10\x10"
    path.write_bytes(path.read_bytes().replace(age + b"AS", age + b"FD"))
    assert read_dicom(path).size == RAMP.shape


def test_the_process_warns_and_logs_as_before(tmp_path):
    good = write_dicom(tmp_path / "a.dcm", RAMP)
    bad = write_dicom(tmp_path / "b.dcm", RAMP, Rows=None)
    loggers = [logging.getLogger(name) for name in ("pydicom", "pydicom.pixels.decoders.base")]
    before = list(warnings.filters), [(log.disabled, list(log.filters)) for log in loggers]

    def read(path):
        try:
            return read_dicom(path).size
        except ImageError:
            return None

    with ThreadPoolExecutor(8) as threads:
        sizes = list(threads.map(read, [good, bad] * 40))
    assert sizes == [RAMP.shape, None] * 40
    assert (list(warnings.filters), [(log.disabled, list(log.filters)) for log in loggers]) == before


def test_silence_in_two_threads_ends_with_both():
    """The second to come in must not take the silence of the first for the state to go back to."""
    before, inside, leave = list(warnings.filters), threading.Event(), threading.Event()

    def second():
        with dicom_header._unheard():
            inside.set()
            leave.wait()

    thread = threading.Thread(target=second)
    with dicom_header._unheard():
        thread.start()
        inside.wait(0.2)  # in vain, unless both may be silent at once
    leave.set()
    thread.join()
    assert list(warnings.filters) == before
    assert not logging.getLogger("pydicom").disabled


# --- nothing is allocated for what a header merely claims ----------------------------------------------------------


@pytest.fixture
def refused():
    """Read a file that must be refused with little memory."""

    def read(path, message, megabytes=4):
        tracemalloc.start()
        try:
            with pytest.raises(ImageError, match=message):
                read_image(path)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < megabytes * 2**20

    read_image_once = pytest.importorskip("pydicom")  # its import is no part of the measurement
    assert read_image_once.uid.RLELossless
    return read


@pytest.mark.parametrize("syntax", ["plain", "JPEGBaseline8Bit", "RLELossless", "JPEG2000Lossless", "JPEGLSLossless"])
def test_dicom_of_absurd_size(tmp_path, refused, syntax):
    size = {"Rows": 60_000, "Columns": 60_000}
    if syntax == "plain":
        path = write_dicom(tmp_path / "a.dcm", RAMP, **size)
    else:
        path = encapsulated(tmp_path / "a.dcm", b"\xff\xd8" * 99, RAMP, syntax, **size)
    refused(path, r"a\.dcm: 60000 x 60000 pixels are more than")


def test_the_limit_is_that_of_an_image(tmp_path, monkeypatch):
    path = write_dicom(tmp_path / "a.dcm", RAMP)
    monkeypatch.setattr(raw, "MAX_PIXELS", RAMP.size)
    assert read_dicom(path).size == RAMP.shape
    monkeypatch.setattr(raw, "MAX_PIXELS", RAMP.size - 1)
    with pytest.raises(ImageError, match="48 x 32 pixels are more than"):
        read_dicom(path)


def test_pictures_of_absurd_size(tmp_path, refused):
    (tmp_path / "a.png").write_bytes(png_bytes(b"\0", 60_000, 60_000, 8, 0))
    refused(tmp_path / "a.png", r"a\.png: 60000 x 60000 pixels are more than")
    stream = bytearray(jpeg_of(np.zeros((8, 8), dtype=np.uint8)))
    at = stream.index(b"\xff\xc0") + 5
    stream[at : at + 4] = struct.pack(">HH", 60_000, 60_000)
    (tmp_path / "a.jpg").write_bytes(stream)
    refused(tmp_path / "a.jpg", r"a\.jpg: 60000 x 60000 pixels are more than")


@pytest.mark.parametrize("head", [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"\0" * 128 + b"DICM"])
def test_a_file_too_large_to_read(tmp_path, refused, head):
    (tmp_path / "a").write_bytes(head)
    os.truncate(tmp_path / "a", raw.MAX_BYTES + 1)  # sparse: takes no space on the disk
    refused(tmp_path / "a", rf"a: a file of {raw.MAX_BYTES + 1} bytes is more than the {raw.MAX_BYTES} that are read")


def deflated(path, body):
    """A file whose data set is `body`, deflated."""
    from pydicom import uid

    plain = dataset(RAMP)
    plain.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    whole = written(path, plain)
    length = 12 + int.from_bytes(whole[140:144], "little")  # of the file meta, from its group length
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    path.write_bytes(whole[: 132 + length] + packer.compress(body) + packer.flush())
    return path


def test_a_deflated_bomb(tmp_path, refused, monkeypatch):
    monkeypatch.setattr(raw, "MAX_BYTES", 2**20)
    element = b"\x09\x00\x01\x00OB\0\0" + struct.pack("<L", 2**26) + bytes(2**26)
    path = deflated(tmp_path / "a.dcm", element)
    assert path.stat().st_size < 2**17
    refused(path, r"a\.dcm: its deflated data set holds more than the 1048576 bytes that are read")


def test_a_deflated_file_that_breaks_off(tmp_path, refused):
    path = deflated(tmp_path / "a.dcm", bytes(2**16))
    path.write_bytes(path.read_bytes()[:-3])
    refused(path, r"a\.dcm: the deflated data set is truncated")


def test_a_length_beyond_the_end_allocates_nothing(tmp_path, refused):
    whole = write_dicom(tmp_path / "a.dcm", RAMP).read_bytes()
    at = whole.index(b"\xe0\x7f\x10\x00OW") + 8
    (tmp_path / "a.dcm").write_bytes(whole[:at] + struct.pack("<L", 2**31) + whole[at + 4 : -500])
    refused(tmp_path / "a.dcm", r"a\.dcm: the pixel data of \d+ bytes cannot hold the frames")


@pytest.mark.parametrize("syntax", ["JPEGLSLossless", "JPEGLossless", "JPEG2000Lossless", "JPEGExtended12Bit"])
def test_compressed_data_without_a_readable_header_reach_no_decoder(tmp_path, refused, syntax):
    path = encapsulated(tmp_path / "a.dcm", b"\xff\xd8\xff\xe0" + bytes(60), RAMP, syntax)
    refused(path, r"a\.dcm: the compressed pixel data are no JPEG")
