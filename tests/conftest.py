"""What all tests share."""

import signal

import hypothesis

# On a busy machine any example can take long once; what is slow in itself shows in the durations.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")

# A program that a script starts in the background is told to ignore Ctrl-C, and so is whatever it starts. The tests that send
# Ctrl-C to commands must not depend on how they were started themselves.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
