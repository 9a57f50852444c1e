"""Calibration of metattn's routed attention: trains feature maps and meta-controllers on a frozen model."""
