"""Garbage for every door: each RPC, REST endpoint and file that MuProver reads.

`targets` says what is fed and what it must not do, `mutate` makes garbage of what is sound, `fuzz`
is the command, `sockets` sends a share of it to real servers, `corpus/` holds what was found.
"""
