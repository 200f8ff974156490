"""Tests of medseg; the folders mirror the package."""
