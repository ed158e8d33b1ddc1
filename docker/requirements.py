"""Prints what MuProver and some of its extras depend on: `requirements.py core tensorflow`."""

import sys
import tomllib

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]

for part in sys.argv[1:]:
    lines = project["dependencies"] if part == "core" else project["optional-dependencies"][part]
    print("\n".join(lines))
