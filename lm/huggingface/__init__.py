"""Converts models from and to Hugging Face folders: settings, weights and pooling.

Tokenizers are read into one file and written anew.

Each family has one table of settings and one of weights, used for both reading and writing. Neither torch nor
transformers is needed.
"""

from lm.huggingface.convert import FAMILIES, from_tensors, read_config, to_tensors, write_config
from lm.huggingface.folder import Imported, export_folder, import_folder
from lm.huggingface.workdir import export_workdir, import_workdir

__all__ = [
    "FAMILIES",
    "Imported",
    "export_folder",
    "export_workdir",
    "from_tensors",
    "import_folder",
    "import_workdir",
    "read_config",
    "to_tensors",
    "write_config",
]
