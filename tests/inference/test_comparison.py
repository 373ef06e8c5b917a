"""Scores of a model and of the baselines are correct, and each baseline returns the text that it should."""

import json

import numpy as np
import pytest

from lm.data.pairs import Pair
from lm.data.store import Store
from lm.errors import InputError
from lm.inference.comparison import compare, nearest
from lm.inference.predict import Predictor
from tests.inference.conftest import make_workdir


def test_the_nearest_source_is_the_same_or_nearly_the_same():
    memory = [
        Pair(f"translate to de: {source}", target)
        for source, target in (
            ("Open the file", "Öffne die Datei"),
            ("Close the window", "Schließe das Fenster"),
            ("The file could not be opened", "Die Datei konnte nicht geöffnet werden"),
            ("你好世界", "Hallo Welt"),
        )
    ]
    asked = ["Open the file", "close the windows!", "File could not be opened.", "你好,世界"]
    assert nearest([f"translate to de: {text}" for text in asked], memory) == [pair.target for pair in memory]


def test_the_nearest_question_is_that_on_the_same_passage():
    passages = ["The river sings under the old stone.", "A bird walks over the green house."]
    memory = [Pair(f"question: What is it? context: {passage}", passage) for passage in passages]
    assert nearest([f"question: What is green? context: {passages[1]}"], memory) == [passages[1]]


def test_the_model_is_compared_with_a_copy_and_the_memory(pairs_workdir):
    found = compare(pairs_workdir, "bleu", limit=6, shown=2)
    scores = found.scores
    assert scores.keys() == {"de", "zh_CN"}
    assert scores["de"]["examples"] + scores["zh_CN"]["examples"] == 6
    for language in ("de", "zh_CN"):
        assert scores[language].keys() == {"examples", "model", "copy", "nearest"}
        assert scores[language]["copy"] == pytest.approx({"bleu": 100, "chrf": 100})
        assert 0 < scores[language].get("nearest", {})["chrf"] < 100
        assert scores[language]["model"]["chrf"] < 50
    assert [example.keys() for example in found.shown] == [{"source", "target", "written"}] * 2
    assert all(example["source"].endswith(f": {example['target']}") for example in found.shown)


def test_a_file_has_both_baselines_and_its_bad_lines_are_named(pairs_workdir, tmp_path):
    """The translation memory is that of the run."""
    lines = ["translate to de: 0 + 1\t0 + 1", "no tab here", "translate to de: 1 + 1\t1 + 1", "\tno source"]
    (tmp_path / "own.tsv").write_text("\n".join(lines) + "\n")
    found = compare(pairs_workdir, "chrf", input_path=str(tmp_path / "own.tsv"))
    assert found.scores["de"].keys() == {"examples", "model", "copy", "nearest"}
    assert found.scores["de"]["examples"] == 2
    assert found.scores["de"]["copy"] == pytest.approx({"chrf": 100})
    assert len(found.left_out) == 2
    assert "own.tsv, line 2" in found.left_out[0]
    assert "own.tsv, line 4" in found.left_out[1]


def test_texts_that_could_not_be_written_are_not_scored_as_empty_ones(pairs_workdir, monkeypatch):
    def pipeline(self, task, options):
        del self, task, options
        return lambda sources: ({"error": "no"} if fails(i) else {"text": "a"} for i, _ in enumerate(sources))

    monkeypatch.setattr(Predictor, "pipeline", pipeline)
    fails = lambda i: i < 2  # noqa: E731
    found = compare(pairs_workdir, "chrf", limit=6, shown=6)
    assert sum(each["examples"] for each in found.scores.values()) == 4
    assert len(found.shown) == 4
    assert [each.rpartition(": ")[2] for each in found.left_out] == ["no", "no"]
    fails = lambda i: True  # noqa: E731
    with pytest.raises(InputError, match=r"no text could be written: .*: no"):
        compare(pairs_workdir, "chrf", limit=6)


def test_other_kinds_of_pairs_are_compared_with_the_whole_memory(pairs_workdir, tmp_path):
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"text": "0 + 1", "target": "0 + 1"}) + "\nnot JSON\n")
    found = compare(pairs_workdir, "exact-match", input_path=str(tmp_path / "pairs.jsonl"))
    assert found.scores["all"].keys() == {"examples", "model", "copy", "nearest"}
    assert found.scores["all"]["copy"]["strict_match"] == 100
    assert len(found.left_out) == 1


def test_what_cannot_be_compared_is_refused(pairs_workdir, tiny_config, tiny_seq2seq, tmp_path):
    with pytest.raises(InputError, match="metric is 'meteor'; accepted: bleu, chrf, rouge, exact-match"):
        compare(pairs_workdir, "meteor")
    (tmp_path / "empty.tsv").write_text("\n")
    with pytest.raises(InputError, match=r"empty\.tsv holds no pair; give a file with pairs"):
        compare(pairs_workdir, "bleu", input_path=str(tmp_path / "empty.tsv"))
    tokenizer = Store.open(tiny_config.data.store).tokenizer
    nothing = {"weights": np.zeros(1, np.float32)}  # neither comes as far as using them
    with pytest.raises(InputError, match="holds documents, not pairs"):
        compare(make_workdir(tmp_path / "documents", tiny_seq2seq, tokenizer, nothing), "bleu")
    with pytest.raises(InputError, match="this model is an encoder, which cannot write"):
        compare(make_workdir(tmp_path / "encoder", tiny_config, tokenizer, nothing), "bleu")
