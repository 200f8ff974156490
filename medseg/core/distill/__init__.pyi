from .dual_head import DistilledLoss, DualHeadDistillation, binary_distillation_loss
from .multi_teacher import MultiTeacherLoss

__all__ = [
    "DistilledLoss",
    "DualHeadDistillation",
    "MultiTeacherLoss",
    "binary_distillation_loss",
]
