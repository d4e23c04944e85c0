"""The `transferapp` command: thin, and quick to say `--help` (nothing heavy is imported before a command runs)."""
