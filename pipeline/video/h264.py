"""What an H.264 stream says of itself in advance: whether any of its pictures may be interlaced."""

from __future__ import annotations

from collections.abc import Iterator

SPS = 7
CHROMA_PROFILES = (44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 244)


def may_be_interlaced(extradata: bytes) -> bool:
    """Whether a sequence parameter set allows fields or field macroblocks (frame_mbs_only_flag 0), or none is there.

    The first frame does not tell: progressive frames may come before interlaced ones.

    Args: extradata: of the stream, as an avcC box or with start codes.
    """
    try:
        flags = [_frame_mbs_only(nal) for nal in _parameter_sets(extradata) if nal[0] & 31 == SPS]
    except (IndexError, ValueError):  # cut off
        return True
    return not flags or not all(flags)


def _parameter_sets(extradata: bytes) -> Iterator[bytes]:
    if extradata[:1] == b"\x01":
        at = 6
        for _ in range(extradata[5] & 31):
            end = at + 2 + int.from_bytes(extradata[at : at + 2], "big")
            yield extradata[at + 2 : end]
            at = end
    else:
        yield from (nal for nal in extradata.split(b"\x00\x00\x01")[1:] if nal)


class _Bits:
    """Numbers of a parameter set in their order (ITU-T H.264, 7.2 and 9.1)."""

    def __init__(self, nal: bytes) -> None:
        self._bits = "".join(f"{byte:08b}" for byte in nal[1:].replace(b"\x00\x00\x03", b"\x00\x00"))
        self._at = 0

    def u(self, bits: int) -> int:
        """Unsigned, of so many bits."""
        self._at += bits
        return int(self._bits[self._at - bits : self._at], 2)

    def ue(self) -> int:
        """Exp-Golomb, unsigned."""
        zeros = self._bits.index("1", self._at) - self._at
        self._at += zeros
        return self.u(zeros + 1) - 1

    def se(self) -> int:
        """Exp-Golomb, signed."""
        code = self.ue()
        return (code + 1) // 2 if code % 2 else -code // 2


def _frame_mbs_only(nal: bytes) -> bool:
    """frame_mbs_only_flag of a sequence parameter set (ITU-T H.264, 7.3.2.1.1)."""
    bits = _Bits(nal)
    profile = bits.u(8)
    bits.u(16)  # constraints, level
    bits.ue()  # id
    if profile in CHROMA_PROFILES:
        chroma_format = bits.ue()
        if chroma_format == 3:
            bits.u(1)
        bits.ue(), bits.ue(), bits.u(1)  # bit depths, lossless transform
        if bits.u(1):
            for which in range(12 if chroma_format == 3 else 8):
                if bits.u(1):
                    _skip_scaling_list(bits, 16 if which < 6 else 64)
    bits.ue()  # log2_max_frame_num
    order_type = bits.ue()
    if order_type == 0:
        bits.ue()
    elif order_type == 1:
        bits.u(1), bits.se(), bits.se()
        for _ in range(bits.ue()):
            bits.se()
    bits.ue(), bits.u(1), bits.ue(), bits.ue()  # references, gaps, width, height
    return bool(bits.u(1))


def _skip_scaling_list(bits: _Bits, size: int) -> None:
    last = 8
    for _ in range(size):
        scale = (last + bits.se()) % 256
        if scale == 0:
            return  # the rest repeats
        last = scale
