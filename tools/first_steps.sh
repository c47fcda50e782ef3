#!/usr/bin/env bash
# Does what the README's first screen says, in a fresh clone, and compares the figures with the README's:
#
#     tools/first_steps.sh [FOLDER]     # a new folder for the clone; default: a temporary one, removed at the end
#     CLAIMS=C4 tools/first_steps.sh    # trains only the cells of that claim, and compares it alone
#
# It installs the lab and trains all that the README shows: half an hour on two cores. It exits with 1 where a figure
# differs, and with the code of a command that fails.
set -euo pipefail

commands=(
    "python train.py --config=configs/digits.py --workdir=runs/digits"
    "python -m flaxformer_lab.ablate --config=configs/ablations/cross_dimension.py --workdir=runs/cross_dimension"
    "python -m flaxformer_lab.evaluate --workdir=runs/digits --split=test"
)

repository=$(cd "$(dirname "$0")/.." && pwd)
folder=${1:-}
if [ -z "$folder" ]; then
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
fi

git clone --quiet "$repository" "$folder/flaxformer_lab"
cd "$folder/flaxformer_lab"
make setup
PATH="$PWD/.venv/bin:$PATH"
for command in "${commands[@]}"; do
    case $command in *.ablate*) command+="${CLAIMS:+ --config.claims=$CLAIMS}" ;; esac
    echo "\$ $command"
    bash -c "$command" | tee last_output
done
python tools/compare_readme.py last_output runs/cross_dimension/report.md "${CLAIMS:-}"
