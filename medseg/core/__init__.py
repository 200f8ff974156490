"""Tensors only: kernels, and what else knows no medicine and nothing of the rest of the package."""

__all__: list[str] = []
