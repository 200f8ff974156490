"""Ways to run a network over a volume."""

from medseg.inferers.mirror import MirrorInferer

__all__ = ["MirrorInferer"]
