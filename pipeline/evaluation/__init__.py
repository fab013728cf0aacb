"""Splits, metrics, intervals and calibration: pure functions on arrays."""
