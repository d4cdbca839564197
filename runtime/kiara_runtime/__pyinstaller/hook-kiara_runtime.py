"""What a frozen program needs of kiara_runtime."""

# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportMissingModuleSource=false
from importlib.util import find_spec

from PyInstaller.utils.hooks import collect_data_files, collect_submodules, copy_metadata

hiddenimports = collect_submodules("kiara_runtime", filter=lambda name: "__pyinstaller" not in name)
datas = collect_data_files("kiara_runtime")
if find_spec("llguidance"):  # reads its own version when it is imported
    datas += copy_metadata("llguidance")
