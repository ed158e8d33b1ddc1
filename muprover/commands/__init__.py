"""What each command of `muprover` is told on its command line, and whom it calls."""
