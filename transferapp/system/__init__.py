"""System: storage, cache, threads, progress, hardware."""
