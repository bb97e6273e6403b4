"""Calls from carriers, exchanges and phones: the shells around `sound`, `streams` and `sip`, which do no I/O."""
