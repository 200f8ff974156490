"""Abdominal phantoms: the anatomy depends on the seed alone, and every subject has a liver among other organs."""

from __future__ import annotations

import numpy as np
import pytest

from medseg.data import ABDOMEN_LABELS, make_abdomen_phantom

SMALL = {"shape": (32, 32, 4), "spacing": (12.0, 12.0, 30.0)}


def test_the_same_seed_draws_the_same_and_another_one_another_anatomy():
    image, label = make_abdomen_phantom(**SMALL, seed=3)
    again, same = make_abdomen_phantom(**SMALL, seed=3)
    assert np.array_equal(image, again)
    assert np.array_equal(label, same)
    assert (make_abdomen_phantom(**SMALL, seed=4)[1] != label).mean() > 0.01


def test_contrast_and_noise_leave_the_anatomy_alone():
    plain, label = make_abdomen_phantom(**SMALL, contrast=0, noise=0)
    bright, same = make_abdomen_phantom(**SMALL, contrast=1, noise=0)
    noisy, _ = make_abdomen_phantom(**SMALL, contrast=0, noise=15)
    assert np.array_equal(label, same)
    assert (bright >= plain).all()
    assert (bright - plain)[label == 1].mean() > 30
    assert (noisy - plain).std() == pytest.approx(15, rel=0.1)


def test_every_subject_has_its_organs_and_livers_differ_in_size():
    labels = [make_abdomen_phantom(seed=seed, noise=0)[1] for seed in range(10)]
    counts = np.array([[(label == k).sum() for k in range(1, len(ABDOMEN_LABELS) + 1)] for label in labels])
    assert (counts > 0).all()
    assert counts[:, 0].std() > 0.1 * counts[:, 0].mean()
    right = np.argwhere(labels[0] == 1)[:, 0].mean()
    assert right > np.argwhere(labels[0] == 2)[:, 0].mean(), "the liver lies to the right of the spleen"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": (8, 32, 4)}, r"shape must have 3 sizes.*\(8, 32, 4\)"),
        ({"spacing": (1, 1, 0)}, "spacing must have 3 positive sizes"),
        ({"noise": -1}, "contrast and noise must be 0 or more, got 1.0 and -1"),
    ],
)
def test_what_cannot_be_drawn_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_abdomen_phantom(**{**SMALL, **options})
