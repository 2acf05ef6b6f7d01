import json

from ahkio.__main__ import main


def test_the_difference_between_presets_is_printed(capsys):
    assert main(["benchmarks", "--languages", "en,fi"]) == 0
    text = capsys.readouterr().out
    assert "The presets differ in: BOS before each prompt, hellaswag_fi." in text
    assert main(["benchmarks", "--languages", "fi", "--suites", "hellaswag,gsm8k", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [task["presets"]["poro2-2025"] for task in found["tasks"]] == ["acc", "acc"]
    assert [task["differs"] for task in found["tasks"]] == [True, False]


def test_an_unknown_language_is_one_sentence(capsys):
    assert main(["benchmarks", "--languages", "en,fii"]) == 2
    assert capsys.readouterr().err == "ahkio: There are no benchmarks in 'fii'; did you mean fi? English is 'en'.\n"
