"""A long run with agents coming and going, watched for growth.

`__main__` is the harness, `usage` reads what processes hold, `slopes` says how that grows,
`picture` draws it, `versions` exports thousands of versions to one server.
"""
