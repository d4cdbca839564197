#!/usr/bin/env bash
# From a folder of your own text to a bundle: examples/own_text.sh FOLDER [more --set options of kiara train]
set -euo pipefail
source=$1
shift
kiara prepare "$source" --out data/own
kiara train --set data.train=data/own "$@" --out runs/own --resume
kiara export runs/own --quantize int8 --out bundles/own
kiara-run generate bundles/own -p "The " --max-tokens 40 --echo
