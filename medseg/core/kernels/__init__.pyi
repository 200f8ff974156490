from .dispatch import choose_backend
from .projection import Projection, max_projections

__all__ = ["Projection", "choose_backend", "max_projections"]
