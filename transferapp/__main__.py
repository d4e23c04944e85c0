"""`python -m transferapp` is `transferapp`."""

from transferapp.cli.main import main

main()
