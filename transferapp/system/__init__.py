"""What the machine offers: storage, cache, threads, progress, hardware."""
