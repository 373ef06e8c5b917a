"""Metrics equal those of their libraries, and cases worked out by hand."""

import pytest
import sacrebleu

from lm.inference.metrics import bleu, chrf, exact_match, rouge

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
    assert chrf(outputs, targets) == {"chrf": found["chrf"]}
    assert bleu(targets, targets) == {"bleu": 100, "chrf": 100}  # not 100.00000000000004


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
