"""What weights tell about a network without any data, layer by layer; and how far its features have collapsed."""

from medseg.core.diagnostics.filters import FilterDiagnosis, diagnose_filters, random_entropy, variance_entropy
from medseg.core.diagnostics.layer_report import LayerDiagnosis, diagnose_layers, layer_table
from medseg.core.diagnostics.neural_collapse import CollapseReport, NeuralCollapse, interior_voxels
from medseg.core.diagnostics.spectrum import (
    farms_eigenvalues,
    hill_alpha,
    layer_alpha,
    layer_alphas,
    learning_rate_scales,
)

__all__ = [
    "CollapseReport",
    "FilterDiagnosis",
    "LayerDiagnosis",
    "NeuralCollapse",
    "diagnose_filters",
    "diagnose_layers",
    "farms_eigenvalues",
    "hill_alpha",
    "interior_voxels",
    "layer_alpha",
    "layer_alphas",
    "layer_table",
    "learning_rate_scales",
    "random_entropy",
    "variance_entropy",
]
