"""For the whole suite."""

import os
import signal

# A suite that a script starts in the background inherits an ignored SIGINT, and the processes that it starts would too.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Triton decides when it is first imported, by whichever test. `make test-gpu` sets it to 0.
os.environ.setdefault("TRITON_INTERPRET", "1")
