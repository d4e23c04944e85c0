"""What is trained above the cut."""
