"""Find, read and check MONAI bundles; nothing here imports torch or MONAI before a check asks for it."""

from __future__ import annotations

from medseg.bundles.bundle import Bundle, list_bundles
from medseg.bundles.check import check_bundle
from medseg.bundles.finding import Finding

__all__ = ["Bundle", "Finding", "check_bundle", "list_bundles"]
