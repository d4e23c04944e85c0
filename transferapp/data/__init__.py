"""Images with labels: where they come from, whether they can be used, and what each is used for."""
