"""Generates `muprover/v1` from `protos/` when the package is built; the rest is in pyproject."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


def generate_protos() -> None:
    """Writes the Python modules of `protos/**/*.proto` into `muprover/v1`."""
    import grpc_tools
    from grpc_tools import protoc

    root = Path(__file__).parent
    protos = sorted(str(path) for path in (root / "protos").rglob("*.proto"))
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    out = [f"--python_out={root}", f"--pyi_out={root}", f"--grpc_python_out={root}"]
    if protoc.main(["protoc", f"-I{root / 'protos'}", f"-I{well_known}", *out, *protos]):
        raise SystemExit("protoc failed; see its message above")


class BuildPy(build_py):
    def run(self) -> None:
        generate_protos()
        super().run()


if __name__ == "__main__":
    setup(cmdclass={"build_py": BuildPy})
