from .class_sums import ClassSums, class_sums
from .dispatch import choose_backend
from .projection import Projection, max_projections

__all__ = ["ClassSums", "Projection", "choose_backend", "class_sums", "max_projections"]
