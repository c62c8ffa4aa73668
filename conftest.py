"""What every suite needs, wherever it is started from."""

from __future__ import annotations

import functools
import signal

import botocore.session  # noqa: TID251 - for the tests of the store that may

# a shell tells the programs in its background to ignore Ctrl-C, nohup to ignore a hangup, and their
# children inherit it: tests of both would wait for processes that never end
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# botocore reads and parses its description of S3 for every session: 80 ms, for thousands of them
setattr(  # noqa: B010 - a name that botocore.session imported
    botocore.session, "create_loader", functools.lru_cache(botocore.session.create_loader)
)
