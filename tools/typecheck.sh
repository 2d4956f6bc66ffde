#!/usr/bin/env bash
# mypy does not follow editable installs that map folders to package names, so it gets the tree as links.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p build/typing/models_genesis
for package in transforms networks datasets training; do
  ln -sfn "$PWD/$package" "build/typing/models_genesis/$package"
done
MYPYPATH=build/typing exec "${PYTHON:-.venv/bin/python}" -m mypy --namespace-packages --explicit-package-bases -p models_genesis "$@"
