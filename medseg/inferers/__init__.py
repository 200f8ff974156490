"""Ways to run a network over a volume."""

from medseg.core.kernels import softmax_
from medseg.inferers.backends import Backend, Engine, Precision, TorchBackend, select_backend
from medseg.inferers.int8_backend import Int8Backend
from medseg.inferers.int8_quantization import Int8Summary, quantize_int8
from medseg.inferers.map_back import GridMap, SlabMapper
from medseg.inferers.mirror import MirrorInferer
from medseg.inferers.shared_noise import SharedNoiseSlidingWindowInferer, draw_noise, with_noise
from medseg.inferers.sliding_window import Slab, StreamingSlidingWindowInferer

__all__ = [
    "Backend",
    "Engine",
    "GridMap",
    "Int8Backend",
    "Int8Summary",
    "MirrorInferer",
    "Precision",
    "SharedNoiseSlidingWindowInferer",
    "Slab",
    "SlabMapper",
    "StreamingSlidingWindowInferer",
    "TorchBackend",
    "draw_noise",
    "quantize_int8",
    "select_backend",
    "softmax_",
    "with_noise",
]
