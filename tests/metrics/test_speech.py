from __future__ import annotations

import pytest

from lavit.metrics.speech import error_rates, plain_text


def test_edits_are_counted_over_all_texts():
    rates = error_rates(["a cat", "dog"], ["a cat", "a dog"])
    assert rates["wer"] == pytest.approx(1 / 4) and rates["cer"] == pytest.approx(2 / 10)
    assert error_rates(["", ""], ["un gato", "sí"]) == {"cer": 1.0, "wer": 1.0}


def test_case_and_punctuation_do_not_count():
    assert plain_text("Tux, ¡la  mascota de Linux! ") == "tux la mascota de linux"
    assert error_rates(["¿una RANA?"], ["Una rana."]) == {"cer": 0.0, "wer": 0.0}


def test_what_cannot_be_compared_is_said():
    with pytest.raises(ValueError, match="1 texts and 2 true ones"):
        error_rates(["a"], ["a", "b"])
    with pytest.raises(ValueError, match="'!!' has no letters"):
        error_rates(["a"], ["!!"])
