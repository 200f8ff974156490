from .barcode import Barcode, persistence_barcode
from .batch import BarTable, BatchMatching, betti_matching_batch
from .betti_numbers import betti_numbers
from .matching import BettiMatching, betti_matching

__all__ = [
    "BarTable",
    "Barcode",
    "BatchMatching",
    "BettiMatching",
    "betti_matching",
    "betti_matching_batch",
    "betti_numbers",
    "persistence_barcode",
]
