#!/usr/bin/env bash
# Run the fast tests with the oldest versions that requirements-compatible.txt allows, in an environment of their own. To
# be run before a release; it downloads several GB. Optional packages are those of requirements-dev.txt.
set -euo pipefail
cd "$(dirname "$0")/.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1

sed -nE 's/^([A-Za-z-]+)(>=|==)([0-9.]+).*/\1==\3/p' requirements-compatible.txt > "$work/oldest.txt"
grep -E '^(pytest|pytest-xdist|hypothesis|onnxscript|lap|pillow-heif|gradio)==' requirements-dev.txt >> "$work/oldest.txt"
python3 -m venv "$work/venv"
source "$work/venv/bin/activate"
pip install --quiet -r "$work/oldest.txt"
python -m pytest -m "not slow" --basetemp "$work/pytest"
