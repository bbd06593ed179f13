"""Numbers in PTX text: the bits of an immediate operand."""

import re
import struct


def number_of(text: str, kind: str) -> int | None:
    """The bits of an immediate for an operand of that type, or None where `text` is no number."""
    if re.fullmatch(r"0[fF][0-9a-fA-F]{8}", text):
        bits = int(text[2:], 16)
        return _bits64(struct.unpack("<f", struct.pack("<I", bits))[0]) if kind == "f64" else bits
    if re.fullmatch(r"0[dD][0-9a-fA-F]{16}", text):
        bits = int(text[2:], 16)
        return _bits32(struct.unpack("<d", struct.pack("<Q", bits))[0]) if kind == "f32" else bits
    if re.fullmatch(r"-?\d+\.\d*(?:[eE][-+]?\d+)?|-?\d+[eE][-+]?\d+", text):
        return _bits64(float(text)) if kind == "f64" else _bits32(float(text))
    if re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|0[bB][01]+|\d+)U?", text):
        sign, digits = (-1, text[1:]) if text.startswith("-") else (1, text)
        digits = digits.rstrip("U")
        octal = len(digits) > 1 and digits[0] == "0" and digits[1].isdigit()
        number = sign * (int(digits, 8) if octal else int(digits, 0))
        if kind in ("f32", "f64"):
            return _bits64(float(number)) if kind == "f64" else _bits32(float(number))
        width = int(kind[1:]) if kind[1:].isdigit() else 64
        return number % (1 << width)
    return None


def _bits32(value: float) -> int:
    return int(struct.unpack("<I", struct.pack("<f", value))[0])


def _bits64(value: float) -> int:
    return int(struct.unpack("<Q", struct.pack("<d", value))[0])
