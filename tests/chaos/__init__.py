"""A real run that things happen to: killed, paused, cut off, torn, out of disk, out of time.

`command` is the harness, `faults` are what happens, `watch` sees how the run takes it, `ledger`
accounts for every acknowledged game and every training step.
"""
