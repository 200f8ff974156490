"""Refuse a model of nnU-Net that would be run here otherwise than nnU-Net runs it.

Custom readers, preprocessors, normalisations and resamplings are classes that plans.json names; those of nnU-Net itself
are known here, and anything else is refused with its name rather than run in some other way.

Source: Isensee et al., "nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation"
(2021), files of version 2.4 to 2.8.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medseg.nnunet.preprocessing import NORMALIZATIONS

# Orientation to which each reader turns an image.
READERS = {"NibabelIOWithReorient": "RAS", "SimpleITKIO": None, "NibabelIO": None, "SimpleITKIOWithReorient": "RAS"}
_KINDS = ("data", "probabilities")
_RESAMPLING = "resample_data_or_seg_to_shape"
_ARCHITECTURE = ("network_class_name", "arch_kwargs", "_kw_requires_import")
_NEEDED = (
    "patch_size",
    "spacing",
    "normalization_schemes",
    "use_mask_for_norm",
    "resampling_fn_data_kwargs",
    "resampling_fn_probabilities_kwargs",
)


def check_plans(path: Path, plans: Mapping[str, Any], shared: Mapping[str, Any], dataset: Mapping[str, Any]) -> None:
    """Refuse what is unknown or missing.

    Args:
        path: the model folder, for messages.
        plans: what plans.json says of the configuration.
        shared: what it says of all.
        dataset: content of dataset.json.

    Raises:
        ValueError: the model cannot be run here; the text names what is unknown and what to do instead.
    """
    if stage := plans.get("previous_stage"):
        raise ValueError(
            f"{path}: a cascade needs the masks of {stage}, which is not known here; predict with nnUNetv2_predict -c "
            f"{stage}, then with this configuration and -prev_stage_predictions"
        )
    architecture = plans.get("architecture")
    if architecture is None:
        raise ValueError(f"{path}: plans.json names no architecture; it is from nnU-Net before 2.4, plan it again")
    missing = [key for key in _NEEDED if key not in plans]
    missing += [f"architecture.{key}" for key in _ARCHITECTURE if key not in architecture]
    if missing:
        raise ValueError(
            f"{path}: plans.json lacks {', '.join(missing)}; copy it anew from where the model was trained"
        )
    _check_dataset(path, dataset, len(plans["normalization_schemes"]))
    _check_classes(path, plans, shared)
    _check_resampling(path, plans)


def _check_dataset(path: Path, dataset: Mapping[str, Any], schemes: int) -> None:
    labels = dataset.get("labels", {})
    if "background" not in labels:
        raise ValueError(
            f"{path}: labels of dataset.json are {labels or 'missing'}; nnU-Net writes background and more"
        )
    has_regions = any(isinstance(value, list) and len(value) > 1 for value in labels.values())
    if has_regions and "regions_class_order" not in dataset:
        raise ValueError(f"{path}: dataset.json has regions but no regions_class_order, the label to write for each")
    channels = dataset.get("channel_names") or dataset.get("modality") or {}
    if len(channels) != schemes:
        raise ValueError(
            f"{path}: dataset.json names {len(channels)} channels, plans.json normalises {schemes}; the two files are "
            "of different models"
        )


def _check_classes(path: Path, plans: Mapping[str, Any], shared: Mapping[str, Any]) -> None:
    """Refuse classes by which a user may have replaced nnU-Net's own."""
    named = (
        ("images are read by", [shared.get("image_reader_writer", "SimpleITKIO")], READERS),
        ("images are normalised by", plans["normalization_schemes"], NORMALIZATIONS),
        ("images are prepared by", [plans.get("preprocessor_name", "DefaultPreprocessor")], ["DefaultPreprocessor"]),
        ("labels are read by", [shared.get("label_manager", "LabelManager")], ["LabelManager"]),
        *((f"resampling_fn_{kind} is", [plans.get(f"resampling_fn_{kind}")], [_RESAMPLING]) for kind in _KINDS),
    )
    for text, found, known in named:
        if unknown := [str(name) for name in found if name not in known]:
            raise ValueError(
                f"{path}: {text} {', '.join(unknown)}; known here: {', '.join(known)}; predict with nnUNetv2_predict"
            )


def _check_resampling(path: Path, plans: Mapping[str, Any]) -> None:
    """Refuse options of nnU-Net's resampling that it never plans by itself."""
    images, scores = (plans[f"resampling_fn_{kind}_kwargs"] for kind in _KINDS)
    if scores.get("order", 1) != 1 or scores.get("order_z", 0) != 0:
        raise ValueError(f"{path}: probabilities are resampled by {scores}; known here: order 1 and order_z 0")
    if images.get("order_z", 0) != 0:
        raise ValueError(f"{path}: images are resampled by {images}; known here: order_z 0")
    if images.get("force_separate_z") != scores.get("force_separate_z"):
        raise ValueError(f"{path}: force_separate_z of images and probabilities differ; known here: one for both")
