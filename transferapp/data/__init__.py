"""Data: sources of labeled images, audit, near-duplicates, splits and label fixes."""
