"""Backbones: registry, loading, stages, inference engines, trunks, and the cache of their features."""
