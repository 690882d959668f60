"""Decode one compressed frame with GDCM: a script of its own, because damaged data can end the process it runs in.

Bytes of the frame in, decoded bytes out (by pixel, in words of 8 or 16 bits), by standard input and output; the
description comes as arguments. Nothing of the package is imported: a run takes about 0.05 s beside the decoding.
"""

import sys


def decode(
    stream: bytes, rows: int, columns: int, samples: int, allocated: int, bits: int, photometric: str, syntax: str
) -> bytes:
    """The decoded frame; empty where GDCM cannot decode it."""
    import gdcm

    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(stream)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((columns, rows, 1))
    image.SetDataElement(element)
    interpretation = gdcm.PhotometricInterpretation
    image.SetPhotometricInterpretation(interpretation(interpretation.GetPIType(photometric)))
    if samples > 1:
        image.SetPlanarConfiguration(0)
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(syntax)))
    image.SetPixelFormat(gdcm.PixelFormat(samples, allocated, bits, bits - 1, 0))
    decoded = image.GetBuffer()  # bytes in the guise of text
    return b"" if decoded is None else bytes(decoded.encode("utf-8", "surrogateescape"))


if __name__ == "__main__":
    rows, columns, samples, allocated, bits = map(int, sys.argv[1:6])
    found = decode(sys.stdin.buffer.read(), rows, columns, samples, allocated, bits, *sys.argv[6:])
    sys.stdout.buffer.write(found)
