"""The machine's limits, probed with the native core's own widest instructions."""

from treadle import _native
from treadle.bench.points import Limits


def probe_limits(threads: int) -> Limits:
    """Memory read, int8 and f32 arithmetic of ``threads`` threads together; takes about a second."""
    return Limits(
        read_gb_s=_native.probe_read_gb_s(threads),
        int8_gop_s=_native.probe_int8_gop_s(threads),
        f32_gop_s=_native.probe_f32_gop_s(threads),
    )
