#!/usr/bin/env bash
# mypy does not follow editable installs that map folders to package names, so it gets the tree as links.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p build/typing/models_genesis
for package in transforms networks datasets training transfer; do
  ln -sfn "$PWD/$package" "build/typing/models_genesis/$package"
done
mypy=("${PYTHON:-.venv/bin/python}" -m mypy --namespace-packages --explicit-package-bases)
MYPYPATH=build/typing "${mypy[@]}" -p models_genesis "$@"
MYPYPATH=build/typing:bundles "${mypy[@]}" bundles/*.py "$@"
MYPYPATH=build/typing:label "${mypy[@]}" label/main.py label/copy_bundle.py $(find label/lib -name "*.py") "$@"
