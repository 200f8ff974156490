"""Ways to run a network over a volume."""

from medseg.inferers.backends import Backend, Engine, Precision, TorchBackend, select_backend
from medseg.inferers.map_back import GridMap, SlabMapper, softmax_
from medseg.inferers.mirror import MirrorInferer
from medseg.inferers.sliding_window import Slab, StreamingSlidingWindowInferer

__all__ = [
    "Backend",
    "Engine",
    "GridMap",
    "MirrorInferer",
    "Precision",
    "Slab",
    "SlabMapper",
    "StreamingSlidingWindowInferer",
    "TorchBackend",
    "select_backend",
    "softmax_",
]
