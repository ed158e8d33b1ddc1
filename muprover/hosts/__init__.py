"""MuProver on several hosts that are reached by ssh: one launcher, one supervisor a host."""
