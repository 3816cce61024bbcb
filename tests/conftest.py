"""Ctrl-C reaches what tests start, also where tests themselves run in the background."""

import signal

# A shell without job control has its background jobs ignore Ctrl-C, and every process that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
