"""Slices of abdomens as three scanners see them: CT, cone-beam CT, and perfusion scans separated in time (TST).

The subjects are phantoms (`medseg.data.make_abdomen_phantom`); what a scanner does to them is simulated, slice by slice
(`medseg.data.ConeBeamScan`, `PerfusionScan`). The only real subject is a CT whose liver another network outlined; it is
scanned in the same way and never learnt from. Slices have 32 x 32 pixels of 12 mm.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from skimage.transform import resize

from medseg.data import ABDOMEN_LABELS, ConeBeamScan, PerfusionScan, add_metal, atomic_path, make_abdomen_phantom

SIZE, SPACING, SLICES = 32, 12.0, 8
MODALITIES = ("ct", "cone_beam", "tst")
ARM = {"sweep": 165.0, "scatter": 0.3, "hardening": 0.02}
CONE_BEAM = ConeBeamScan(views=60, photons=1e5, motion=3.0, **ARM)
TST_ARM = {"views": 48, "photons": 2e4, "motion": 5.0, **ARM}
TRUNCATED = 220.0  # mm, of bodies some 300 mm wide
PEAK_EARLY, PEAK_LATE, TIME = 9.0, 24.0, 18.0  # seconds: arteries and kidneys, all else, the image that is segmented
_EARLY = [ABDOMEN_LABELS.index(name) + 1 for name in ("kidneys", "vessels")]


@dataclass(frozen=True)
class Subject:
    """One subject in one modality; image in [0, 1] and mask (1, X, Y, slices)."""

    name: str
    image: np.ndarray
    mask: np.ndarray

    def items(self) -> list[dict[str, Any]]:
        """Its slices, as `medseg.engines.Stage` takes them."""
        tensors = (torch.from_numpy(np.ascontiguousarray(np.moveaxis(a, -1, 0))) for a in (self.image, self.mask))
        pairs = zip(*tensors, strict=True)
        return [{"subject": self.name, "image": image, "label": mask} for image, mask in pairs]


@dataclass(frozen=True)
class Anatomy:
    """A subject before it is scanned: at rest, what the contrast agent adds, and labels; HU."""

    rest: np.ndarray
    uptake: np.ndarray
    label: np.ndarray


def draw_anatomy(seed: int) -> Anatomy:
    """A phantom; how much contrast agent it holds varies as well."""
    options = {"shape": (SIZE, SIZE, SLICES), "spacing": (SPACING, SPACING, 15.0), "seed": seed, "noise": 0.0}
    rest, label = make_abdomen_phantom(contrast=0.0, **options)
    contrast = np.random.default_rng([seed, 2]).uniform(0.4, 1.2)
    return Anatomy(rest, make_abdomen_phantom(contrast=contrast, **options)[0] - rest, label)


def read_anatomy(folder: Path) -> Anatomy:
    """The real CT at the phantoms' spacing: every fifth slice of 3 mm that shows the liver."""
    images: list[Any] = [nibabel.load(folder / f"ct_full_3mm{end}.nii.gz") for end in ("", "_seg")]
    image, label = (np.asarray(i.dataobj) for i in images)
    slices = np.flatnonzero((label == 5).any((0, 1)))[::5]
    image, label = image[..., slices].astype(np.float32), label[..., slices]
    organs = {5: 1, 1: 2, 2: 3, 3: 3, 6: 4, 52: 5}
    label = np.sum([new * (label == old) for old, new in organs.items()], axis=0)
    added = {1: 45.0, 2: 65.0, 3: 110.0, 5: 110.0}
    uptake = np.sum([value * (label == organ) for organ, value in added.items()], axis=0).astype(np.float32)
    # A label is what most of its voxels have.
    shares = [_resize((label == organ).astype(np.float32)) for organ in range(6)]
    parts = ((_resize(image), -1000), (_resize(uptake), 0), (np.argmax(shares, axis=0), 0))
    return Anatomy(*(_pad(part, value) for part, value in parts))


def scan(anatomy: Anatomy, modality: str, seed: int, *, metal: bool = False, truncated: bool = False) -> np.ndarray:
    """See an anatomy as a modality does, (X, Y, slices) in [0, 1], each slice from its 0.5th to 99.5th percentile."""
    rest, uptake = anatomy.rest, anatomy.uptake
    if metal:
        rest = add_metal(rest, anatomy.label == 1, pieces=4, radius=0.5, density=4000.0, seed=seed)
    width = TRUNCATED if truncated else None
    if modality == "ct":
        noise = np.random.default_rng([seed, 3]).normal(0, 12, rest.shape)
        image = rest + uptake + noise
    elif modality == "cone_beam":
        image = CONE_BEAM.simulate(rest + uptake, spacing=SPACING, seed=seed)
    else:
        perfusion = PerfusionScan(ConeBeamScan(field_of_view=width, **TST_ARM), sweeps=6)
        early = np.isin(anatomy.label, _EARLY)
        flows = [uptake * early, uptake * ~early]
        images = perfusion.simulate(rest, flows, [PEAK_EARLY, PEAK_LATE], spacing=SPACING, seed=seed)
        image = perfusion.image_at(images, TIME)
    low, high = np.percentile(image, (0.5, 99.5), axis=(0, 1))
    return np.clip((image - low) / np.maximum(high - low, 1e-6), 0, 1).astype(np.float32)


def load_subject(cache: Path, name: str, anatomy: Any, modality: str, seed: int, **flaws: bool) -> Subject:
    """A scanned subject; kept on disk, since scanning takes a second. `anatomy` is called where it is not there yet."""
    path = cache / f"{name}-{'-'.join([modality, *(f for f, on in flaws.items() if on)])}.npz"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        found = anatomy()
        with atomic_path(path) as part:
            np.savez_compressed(part, image=scan(found, modality, seed, **flaws), mask=found.label == 1)
    with np.load(path) as file:
        return Subject(name, file["image"][None], file["mask"][None].astype(np.float32))


def load_phantoms(cache: Path, modality: str, seeds: Sequence[int], **flaws: bool) -> list[Subject]:
    """Phantoms in a modality, named by their seeds: the same name is the same anatomy in every modality."""
    return [load_subject(cache, f"phantom{s:03d}", lambda s=s: draw_anatomy(s), modality, s, **flaws) for s in seeds]


def all_items(subjects: Sequence[Subject], count: int | None = None) -> list[dict[str, Any]]:
    """All slices of the subjects, repeated to a count."""
    items = [item for subject in subjects for item in subject.items()]
    return items if count is None else list(_repeat(items, count))


def _repeat(items: Sequence[dict[str, Any]], count: int) -> Iterator[dict[str, Any]]:
    for i in range(count):
        yield items[i % len(items)]


def _resize(volume: np.ndarray) -> np.ndarray:
    """Slices of 3 mm at the phantoms' spacing, to a few hundredths."""
    shape = [int(n * 3.0 / SPACING) for n in volume.shape[:2]]
    return np.asarray(resize(volume, (*shape, volume.shape[2]), order=1, anti_aliasing=True, preserve_range=True))


def _pad(volume: np.ndarray, value: float) -> np.ndarray:
    """As many voxels a slice as the phantoms have."""
    margins = [((SIZE - n) // 2, SIZE - n - (SIZE - n) // 2) for n in volume.shape[:2]]
    return np.pad(volume, [*margins, (0, 0)], constant_values=value)
