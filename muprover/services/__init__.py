"""What crosses a wire: the servicer and the `Remote…` client of each service, in one file each."""
