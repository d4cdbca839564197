"""A program in one file, with its model, for people who have no Python. Needs pyinstaller to be built.

pyinstaller --onefile --name app --add-data "bundles/demo:bundle" examples/frozen/app.py
dist/app generate -p "def main("
dist/app serve
"""

import sys
from pathlib import Path

from kiara_runtime.commands.main import main

BUNDLE = Path(__file__).parent / "bundle"  # where PyInstaller unpacks it

if __name__ == "__main__":
    command, *options = sys.argv[1:] or ["serve"]
    main([command, str(BUNDLE), *options], prog_name="app")
