"""For the whole suite."""

import signal

# A suite that a script starts in the background inherits an ignored SIGINT, and the processes that it starts would too.
signal.signal(signal.SIGINT, signal.default_int_handler)
