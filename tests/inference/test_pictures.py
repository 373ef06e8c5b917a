"""Pictures of attention weights have the right labels and numbers; what cannot be drawn is refused."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager, image

from lm import checkpoint, fonts, models
from lm.config import CheckpointConfig, to_json
from lm.errors import InputError
from lm.inference import pictures
from lm.inference.attention import Weights
from lm.inference.pictures import Picture, draw, draw_weights
from tests.inference.test_attention import (  # noqa: F401
    RELATIVE,
    SENTENCE,
    predictor,
    random_params,
    run_config,
    tokenizer,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture
def only_dejavu(monkeypatch):
    """A machine with no font but matplotlib's own."""
    kept = [entry for entry in font_manager.fontManager.ttflist if entry.name.startswith(("DejaVu Sans", "Last"))]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", kept)
    monkeypatch.setattr(font_manager, "findSystemFonts", list)
    monkeypatch.setattr(fonts, "_PACKAGE", "no_such_package")


@pytest.fixture
def chinese_font(only_dejavu, monkeypatch, tmp_path) -> str:
    """A font installed after matplotlib listed them: black squares for the characters of the sentence."""
    pen = TTGlyphPen(None)
    for number, point in enumerate([(0, 0), (0, 800), (800, 800), (800, 0)]):
        (pen.lineTo if number else pen.moveTo)(point)
    pen.closePath()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "square"])
    builder.setupCharacterMap(dict.fromkeys(map(ord, SENTENCE), "square"))
    builder.setupGlyf({".notdef": pen.glyph(), "square": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (900, 0), "square": (900, 0)})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Squares", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path := tmp_path / "squares.ttf")
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(path)])
    return "Squares"


def weights_of(queries: list[str], keys: list[str], layers: int = 2, number: int = 3) -> Weights:
    scores = np.random.default_rng(0).normal(size=(layers, number, len(queries), len(keys)))
    weights = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
    return Weights("Attention", weights.astype(np.float32), queries, keys)


def test_a_font_that_has_the_glyphs_is_found(chinese_font):
    assert fonts.families(["[CLS] river"]) == ["DejaVu Sans"]
    assert fonts.families([SENTENCE, "river"]) == ["DejaVu Sans", chinese_font]


def test_glyphs_that_no_font_has_are_named_with_the_remedy(only_dejavu, tmp_path):
    with pytest.raises(InputError, match=r"我.*pip install -e '.\[fonts\]'.*apt-get install"):
        draw_weights(weights_of(list(SENTENCE), list(SENTENCE)), Picture(str(tmp_path / "a.png")))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("choice", [{}, {"layer": 2, "head": 3}])
def test_pictures_show_the_labels_of_the_sentence(chinese_font, tmp_path, choice):
    """A missing glyph would be a warning, and so an error here."""
    path = tmp_path / "a.png"
    draw_weights(weights_of(["[CLS]", *SENTENCE], [*SENTENCE, r"$\frac$"]), Picture(str(path), **choice))
    pixels = image.imread(path)
    assert pixels.shape[0] > 400
    assert pixels.shape[1] > 500
    assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 50


def test_which_heatmaps_are_drawn():
    weights = weights_of(["a", "b"], ["c", "d", "e"]).weights_NHLS
    panels = pictures._panels(weights, Picture(""))
    assert [title for title, _ in panels] == ["layer 1, mean of 3 heads", "layer 2, mean of 3 heads"]
    np.testing.assert_allclose(panels[1][1], weights[1].mean(axis=0))
    (panel,) = pictures._panels(weights, Picture("", layer=2, head=3))
    assert panel[0] == "layer 2, head 3"
    np.testing.assert_array_equal(panel[1], weights[1, 2])
    assert len(pictures._panels(weights, Picture("", layer=1))) == 3
    assert len(pictures._panels(weights, Picture("", head=1))) == 2


@pytest.mark.parametrize(
    ("labels", "picture", "message"),
    [
        (["a"] * 65, Picture("a.png"), "65 tokens.*64"),
        (["a"], Picture("a.png", layer=3), "layer to draw is 3.*1 to 2"),
        (["a"], Picture("a.png", head=0), "head to draw is 0.*1 to 3"),
        (["a"], Picture("no/such/folder/a.png"), "No such file or directory; give a file that can be written"),
    ],
)
def test_what_cannot_be_drawn_is_refused(labels, picture, message):
    with pytest.raises(InputError, match=message):
        draw_weights(weights_of(labels, labels), picture)


def test_a_request_without_an_answer_or_a_kind_that_is_not_there_is_refused(predictor):  # noqa: F811
    embed = predictor.pipeline("embed")
    with pytest.raises(InputError, match="the text is empty"):
        draw(predictor, embed, "", Picture("a.png"))
    with pytest.raises(InputError, match="'cross'; this model has: encoder"):
        draw(predictor, embed, SENTENCE, Picture("a.png", of="cross"))


def test_the_script_draws_and_answers(tokenizer, tmp_path):  # noqa: F811
    config = run_config(dataclasses.replace(RELATIVE, num_layers=1))
    (workdir := tmp_path / "run").mkdir()
    (workdir / tokenizer.file_name).write_bytes(tokenizer.to_bytes())
    (workdir / "config.json").write_text(to_json(config))
    saved = checkpoint.Checkpoints(workdir, CheckpointConfig(asynchronous=False))
    saved.save(0, {"params": random_params(models.build(config.model)), "step": np.int32(0)})
    saved.close()
    command = [sys.executable, ROOT / "launch/predict.py", f"--checkpoint={workdir}", "--task=generate"]
    flags = [f"--attention={tmp_path / 'a.svg'}", "--attention_of=encoder", "--attention_head=2", "--max_length=4"]
    done = subprocess.run([*command, *flags], input="river\nhouse\n", capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout.count("score")) == (0, 2), done.stderr
    drawn = (tmp_path / "a.svg").read_text()
    assert "<!-- layer 1, head 2 -->" in drawn
    assert "<!-- Self-attention of the encoder -->" in drawn
