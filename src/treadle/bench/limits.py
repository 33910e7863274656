"""The machine's limits, probed with the native core's own widest instructions."""

from treadle import _native
from treadle.bench.points import Limits


def probe_limits(threads: int, read_bytes: int) -> Limits:
    """Of ``threads`` threads together: reading ``read_bytes`` again and again, and arithmetic. Takes about a second.

    Of more than a gigabyte only one is read.
    """
    return Limits(
        read_gb_s=_native.probe_read_gb_s(threads, min(read_bytes, 1 << 30)),
        int8_gop_s=_native.probe_int8_gop_s(threads),
        bf16_gop_s=_native.probe_bf16_gop_s(threads),
        f32_gop_s=_native.probe_f32_gop_s(threads),
    )
