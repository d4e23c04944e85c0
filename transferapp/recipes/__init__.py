"""Programs: fit, search, evaluate, ensemble, audit, label doctor."""
