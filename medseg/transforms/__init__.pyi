from .label_mip import LabelMIP, LabelMIPd

__all__ = ["LabelMIP", "LabelMIPd"]
