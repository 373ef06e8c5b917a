"""Metrics equal their libraries' and cases worked by hand; the baselines find what they should."""

import json

import numpy as np
import pytest
import sacrebleu

from lm.data.pairs import Pair
from lm.data.store import Store
from lm.errors import InputError
from lm.inference.evaluate import bleu, evaluate, exact_match, nearest, rouge
from tests.inference.conftest import make_workdir

GERMAN = (
    ["Die Datei wurde nicht gefunden.", "Öffne das Fenster, bitte!", "Drei Äpfel liegen auf dem Tisch."],
    ["Die Datei konnte nicht gefunden werden.", "Öffne bitte das Fenster!", "Drei Äpfel liegen auf dem Tisch."],
)
CHINESE = (
    ["没有找到这个文件。", "请打开窗户!", "桌子上有三个苹果。"],
    ["找不到这个文件。", "请把窗户打开!", "桌子上有三个苹果。"],
)


@pytest.mark.parametrize(("texts", "tokenize"), [(GERMAN, "13a"), (CHINESE, "zh")], ids=["german", "chinese"])
def test_bleu_and_chrf_are_sacrebleus(texts, tokenize):
    outputs, targets = texts
    found = bleu(outputs, targets)
    assert found == {
        "bleu": sacrebleu.BLEU(tokenize=tokenize).corpus_score(outputs, [targets]).score,
        "chrf": sacrebleu.CHRF().corpus_score(outputs, [targets]).score,
    }
    assert 20 < found["bleu"] < 100
    assert bleu(targets, targets) == pytest.approx({"bleu": 100, "chrf": 100})


def test_chinese_is_cut_into_characters_for_bleu():
    """As a single word each of these sentences would share no word with its target."""
    outputs, targets = (texts[:2] for texts in CHINESE)
    assert bleu(outputs, targets)["bleu"] > sacrebleu.corpus_bleu(outputs, [targets], tokenize="13a").score + 10


def test_rouge_of_cases_worked_by_hand():
    # Of 6 and 6 words five are shared, three of five pairs of words, and five are in order.
    cat = rouge(["the cat was on the mat"], ["The cat sat on the mat."])
    assert cat == pytest.approx({"rouge1": 100 * 5 / 6, "rouge2": 100 * 3 / 5, "rougeL": 100 * 5 / 6})
    # Characters: 我爱编程 and 编程很棒 share two of four and the pair 编程, one of three.
    chinese = rouge(["我爱编程"], ["编程很棒"])
    assert chinese == pytest.approx({"rouge1": 50, "rouge2": 100 / 3, "rougeL": 50})
    both = rouge(["the cat was on the mat", "我爱编程"], ["The cat sat on the mat.", "编程很棒"])
    assert both == pytest.approx({name: (cat[name] + chinese[name]) / 2 for name in cat})


@pytest.mark.parametrize(
    ("output", "target", "match", "f1", "strict"),
    [
        ("the Eiffel Tower!", "Eiffel tower", 1, 1, 0),
        ("in 1889", "1889", 0, 2 / 3, 0),
        ("a cat and a cat", "cat", 0, 1 / 2, 0),  # a repeated word is shared once
        ("", "nothing", 0, 0, 0),
        ("the", "a", 1, 1, 0),  # nothing is left of either
        ("Paris", "Paris", 1, 1, 1),
        ("北京。", "北京", 1, 1, 0),
        ("在北京市", "北京", 0, 2 * 2 / 6, 0),
        ("《红楼梦》", "红楼梦", 1, 1, 0),
        ("上海", "北京", 0, 0, 0),
    ],
)
def test_exact_match_and_f1_of_cases_worked_by_hand(output, target, match, f1, strict):
    expected = {"exact_match": 100 * match, "f1": 100 * f1, "strict_match": 100 * strict}
    assert exact_match([output], [target]) == pytest.approx(expected)
    assert exact_match([output, "x"], [target, "y"])["f1"] == pytest.approx(50 * f1)


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


def test_evaluate_compares_the_model_with_a_copy_and_the_memory(pairs_workdir):
    found = evaluate(pairs_workdir, "bleu", limit=6, shown=2)
    assert found.keys() == {"de", "zh_CN", "shown"}
    assert found["de"]["examples"] + found["zh_CN"]["examples"] == 6
    for language in ("de", "zh_CN"):
        assert found[language].keys() == {"examples", "model", "copy", "nearest"}
        assert found[language]["copy"] == pytest.approx({"bleu": 100, "chrf": 100})
        assert 0 < found[language]["nearest"]["chrf"] < 100
        assert found[language]["model"]["chrf"] < 50
    assert [example.keys() for example in found["shown"]] == [{"source", "target", "written"}] * 2
    assert all(example["source"].endswith(f": {example['target']}") for example in found["shown"])


def test_evaluate_on_a_file_has_no_memory(pairs_workdir, tmp_path):
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"text": "translate to de: 0 + 1", "target": "0 + 1"}) + "\n")
    found = evaluate(pairs_workdir, "exact-match", input_path=str(tmp_path / "pairs.jsonl"))
    assert found["de"].keys() == {"examples", "model", "copy"}
    assert found["de"]["copy"]["strict_match"] == 100


def test_what_cannot_be_evaluated_is_refused(pairs_workdir, tiny_config, tiny_seq2seq, tmp_path):
    with pytest.raises(InputError, match="metric is 'meteor'; accepted: bleu, rouge, exact-match"):
        evaluate(pairs_workdir, "meteor")
    (tmp_path / "empty.tsv").write_text("\n")
    with pytest.raises(InputError, match=r"empty\.tsv holds no pair"):
        evaluate(pairs_workdir, "bleu", input_path=str(tmp_path / "empty.tsv"))
    tokenizer = Store.open(tiny_config.data.store).tokenizer
    nothing = {"weights": np.zeros(1, np.float32)}  # neither comes as far as using them
    with pytest.raises(InputError, match="holds documents, not pairs"):
        evaluate(make_workdir(tmp_path / "documents", tiny_seq2seq, tokenizer, nothing), "bleu")
    with pytest.raises(InputError, match="this model is an encoder, which cannot write"):
        evaluate(make_workdir(tmp_path / "encoder", tiny_config, tokenizer, nothing), "bleu")
