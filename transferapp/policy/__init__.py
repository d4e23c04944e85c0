"""Decisions as pure functions with named thresholds: size, similarity, cut, fine-tuning, time budget."""
