"""Bundles: trained classifiers on disk, and predictions from them."""
