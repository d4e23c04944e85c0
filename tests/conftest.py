"""What all tests share."""

import signal

# A program that a script starts in the background is told to ignore Ctrl-C, and so is whatever it starts. The tests that send
# Ctrl-C to commands must not depend on how they were started themselves.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
