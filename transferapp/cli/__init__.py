"""The `transferapp` command. Heavy modules are imported only when a command runs, so that `--help` is fast."""
