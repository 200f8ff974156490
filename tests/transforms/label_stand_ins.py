"""Transforms of label maps in the battery of transforms, which hands them an image of noise: here it becomes a map."""

from __future__ import annotations

from medseg.transforms import (
    ShapeBasedResampleToMatch,
    ShapeBasedResampleToMatchd,
    ZonePostProcess,
    ZonePostProcessd,
)


def as_map(image):
    return (3 * image).round()


class CleanNoise(ZonePostProcess):
    def __call__(self, label):
        return super().__call__(as_map(label))


class CleanNoised(ZonePostProcessd):
    def __call__(self, data):
        return super().__call__({**data, "image": as_map(data["image"])})


class ResampleNoise(ShapeBasedResampleToMatch):
    def __call__(self, label, img_dst=None):
        return super().__call__(as_map(label), img_dst)


class ResampleNoised(ShapeBasedResampleToMatchd):
    def __call__(self, data):
        return super().__call__({**data, "image": as_map(data["image"])})


STAND_INS = {
    "ZonePostProcess": (CleanNoise, CleanNoised),
    "ShapeBasedResampleToMatch": (ResampleNoise, ResampleNoised),
}
