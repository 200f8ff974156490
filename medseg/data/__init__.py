"""Volumes, folders and lists: everything that reads from or writes to disk."""

from medseg.data.abdomen_phantom import ABDOMEN_LABELS, make_abdomen_phantom
from medseg.data.atomic import atomic_path
from medseg.data.class_ratio_prior import ClassRatioPrior
from medseg.data.cone_beam import ConeBeamScan, add_metal
from medseg.data.datalist import is_nifti, list_images, load_datalist, strip_nifti_ending
from medseg.data.inputs import Case, OutputNames, find_cases, name_outputs
from medseg.data.phantoms import make_phantom, write_phantom_dataset
from medseg.data.prostatex_zones import convert_prostatex_zones, find_prostatex_cases, read_prostatex_label
from medseg.data.rater_phantom import make_rater_phantom, write_rater_phantoms
from medseg.data.runs_table import read_runs
from medseg.data.sample_ids import hash_samples, sample_names, with_sample_ids
from medseg.data.time_separation import PerfusionScan
from medseg.data.topology_phantoms import make_topology_phantom
from medseg.data.training_curve import TrainingCurve, read_training_curve
from medseg.data.vessel_phantom import VesselPhantom, make_vessel_phantom, write_vessel_phantoms
from medseg.data.volume import (
    Volume,
    VolumeError,
    check_same_grid,
    read_channels,
    read_image,
    read_mask,
)
from medseg.data.writing import write_map, write_mask, write_probabilities
from medseg.data.zone_phantom import ZonePhantom, make_zone_phantom, write_zone_phantoms

__all__ = [
    "ABDOMEN_LABELS",
    "Case",
    "ClassRatioPrior",
    "ConeBeamScan",
    "OutputNames",
    "PerfusionScan",
    "TrainingCurve",
    "VesselPhantom",
    "Volume",
    "VolumeError",
    "ZonePhantom",
    "add_metal",
    "atomic_path",
    "check_same_grid",
    "convert_prostatex_zones",
    "find_cases",
    "find_prostatex_cases",
    "hash_samples",
    "is_nifti",
    "list_images",
    "load_datalist",
    "make_abdomen_phantom",
    "make_phantom",
    "make_rater_phantom",
    "make_topology_phantom",
    "make_vessel_phantom",
    "make_zone_phantom",
    "name_outputs",
    "read_channels",
    "read_image",
    "read_mask",
    "read_prostatex_label",
    "read_runs",
    "read_training_curve",
    "sample_names",
    "strip_nifti_ending",
    "with_sample_ids",
    "write_map",
    "write_mask",
    "write_phantom_dataset",
    "write_probabilities",
    "write_rater_phantoms",
    "write_vessel_phantoms",
    "write_zone_phantoms",
]
