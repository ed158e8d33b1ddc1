"""Messages and stubs generated from `protos/muprover/v1`; `make protos` rebuilds them."""
