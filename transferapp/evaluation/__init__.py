"""Metrics, calibration, parity of the served network, label errors, test-time crops, and reports."""
