"""A run of ours, exported, answers in transformers as it does here."""

import jax
import numpy as np
import pytest
import torch
import transformers

from lm import checkpoint, models
from lm.config import CheckpointConfig, Config, DataConfig, ModelConfig, ObjectiveConfig
from lm.data.tokenizer import SentencePiece
from lm.huggingface import export_workdir
from lm.inference.predict import Predictor

pytestmark = pytest.mark.peers

TEXT = ["The capital of China is Beijing, said the model again.", "中国的首都是北京。"] * 30
SMALL = {"vocab_size": 640, "d_model": 32, "num_layers": 4, "num_heads": 4, "d_ff": 48, "max_length": 64}
MODERNBERT = {
    "norm_position": "pre",
    "norm_eps": 1e-5,
    "norm_bias": False,
    "first_attention_norm": False,
    "final_norm": True,
    "gated": True,
    "attention_bias": False,
    "mlp_bias": False,
    "position": "rotary",
    "global_every": 3,
    "window": 4,
    "token_types": 0,
    "head_bias": False,
    "pooler": False,
}


@pytest.mark.parametrize("family", [{}, MODERNBERT], ids=["bert", "modernbert"])
def test_masks_are_filled_alike(tmp_path, family):
    tokenizer = SentencePiece.train(TEXT, vocab_size=600)
    model = ModelConfig(**SMALL, **family, init_std=0.2)
    data = DataConfig(vocab_size=tokenizer.vocab_size, seq_length=32)
    config = Config(model=model, data=data, objective=ObjectiveConfig(nsp=model.pooler))
    saved = checkpoint.Checkpoints(tmp_path / "run", CheckpointConfig(asynchronous=False))
    saved.save(0, {"params": models.build(model).init(jax.random.key(0)), "step": np.int32(0)})
    saved.close()
    (tmp_path / "run/tokenizer.model").write_bytes(tokenizer.to_bytes())
    checkpoint.write_config(tmp_path / "run", config)
    export_workdir(str(tmp_path / "run"), tmp_path / "exported")

    their_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "exported")
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "exported").eval()
    requests = ["The capital of [MASK] is Beijing.", "中国的首[MASK]是北京。", "[MASK] said the [MASK] model."]
    ours = list(Predictor.load(str(tmp_path / "run")).fill_mask(requests))
    for request, answer in zip(requests, ours, strict=True):
        inputs = their_tokenizer(request, return_tensors="pt")
        with torch.no_grad():
            logits_LV = theirs(**inputs).logits[0, :, : tokenizer.vocab_size]
        masked_MV = logits_LV[inputs["input_ids"][0] == their_tokenizer.mask_token_id].softmax(-1)
        assert len(masked_MV) == len(answer["masks"]) > 0
        for probabilities_V, candidates in zip(masked_MV, answer["masks"], strict=True):
            best = torch.topk(probabilities_V, len(candidates))
            np.testing.assert_allclose([each["probability"] for each in candidates], best.values, atol=1e-5)
            assert [each["token"] for each in candidates] == their_tokenizer.convert_ids_to_tokens(best.indices)
