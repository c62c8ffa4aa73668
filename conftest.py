"""What every suite needs, wherever it is started from."""

from __future__ import annotations

import signal

# what a shell runs in the background has been told to ignore Ctrl-C, and its children with it
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
