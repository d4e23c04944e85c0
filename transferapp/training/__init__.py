"""Training above a cut: linear classifiers, heads, tails, batches, optimizers, schedules, and the loop with checkpoints."""
