"""What every suite needs, wherever it is started from."""

from __future__ import annotations

import functools
import signal

import botocore.session  # noqa: TID251 - for the tests of the store that may

# what a shell runs in the background has been told to ignore Ctrl-C, and its children with it
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# botocore reads and parses its description of S3 for every session: 80 ms, for thousands of them
setattr(  # noqa: B010 - a name that botocore.session imported
    botocore.session, "create_loader", functools.lru_cache(botocore.session.create_loader)
)
