#!/usr/bin/env bash
# Builds an image of each component with Docker, Podman or Buildah: whatever is there, or $TOOL.
#
#   REGISTRY     what the images' names begin with, like localhost or ghcr.io/me (default: nothing)
#   TAG          their tag (default: MuProver's version, as in the chart)
#   COMPONENTS   only these
#   BASE_IMAGE   a Python 3.11 or newer, on Debian or the like
#   INDEX_URL    package index (default: PyPI)
#   GPU=1        trainer and network with CUDA, tagged TAG-gpu
#   BUILD_ARGS   more arguments of the tool
set -euo pipefail
cd "$(dirname "$0")/.."

works() { command -v "$1" > /dev/null && { [ "$1" = buildah ] || "$1" info > /dev/null 2>&1; }; }

find_tool() {
  for tool in docker podman buildah; do
    if works "$tool"; then echo "$tool"; return; fi
  done
  echo "images are built by Docker, Podman or Buildah; none of them works here" >&2
  exit 1
}

TOOL=${TOOL:-$(find_tool)}
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
tag=${TAG:-$version}
components=${COMPONENTS:-environment replay agent evaluator trainer network}
arguments=(--file docker/Dockerfile --build-arg "VERSION=$version")
arguments+=(--build-arg "REVISION=$(git rev-parse --short HEAD 2> /dev/null || echo unknown)")
[ -z "${BASE_IMAGE:-}" ] || arguments+=(--build-arg "BASE_IMAGE=$BASE_IMAGE")
[ -z "${INDEX_URL:-}" ] || arguments+=(--build-arg "INDEX_URL=$INDEX_URL")
if [ -n "${GPU:-}" ]; then
  arguments+=(--build-arg "TENSORFLOW=tensorflow[and-cuda]")
  tag=$tag-gpu components=${COMPONENTS:-trainer network}
fi
case $TOOL in
  *buildah) command=("$TOOL" build --layers) ;;
  *podman) command=("$TOOL" build --layers) ;;
  *) command=("$TOOL" build) ;;
esac

for component in $components; do
  image=${REGISTRY:+${REGISTRY%/}/}muprover-$component:$tag
  echo "building $image with $TOOL"
  # shellcheck disable=SC2086
  "${command[@]}" "${arguments[@]}" ${BUILD_ARGS:-} --target "$component" --tag "$image" .
done
