import gzip
import json
import random
import subprocess
import sys
from itertools import pairwise

import pytest
import zstandard
from tiny_tokenizer import TEXTS, write_tokenizer

from ahkio.__main__ import main
from ahkio.core.errors import UserError
from ahkio.tokens import jsonl
from ahkio.tokens.jsonl import Tokeniser, cut, tokenise
from ahkio.tokens.shards import TokenStore
from ahkio.tokens.tokenizer import Encoder

DRAW = random.Random(0)
DOCUMENTS = ["\n".join(DRAW.choices([*TEXTS, "", "yö 😀 <|endoftext|>"], k=DRAW.randrange(9))) for _ in range(300)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def lines(documents):
    return "".join(json.dumps({"id": 1, "text": text}) + "\n" for text in documents).encode()


def made(inputs, prefix, folder, workers=1):
    tokenise(inputs, prefix, Tokeniser(folder), workers, lambda done: None)
    return [prefix.with_name(prefix.name + suffix).read_bytes() for suffix in (".bin", ".idx")]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "a.jsonl"
    path.write_bytes(lines(DOCUMENTS))
    return path


def test_every_document_comes_back_between_its_marks_in_order(plain, folder, tmp_path):
    facts = tokenise([plain], tmp_path / "out" / "a-v1.2", Tokeniser(folder), 1, lambda done: None)
    store, encoder = TokenStore(tmp_path / "out"), Encoder.load(folder)
    found = [encoder.decode(store.document(i).tolist(), skip_special=False) for i in range(store.documents)]
    assert found == [f"<|start|>{text}<|endoftext|>" for text in DOCUMENTS]
    assert (facts["documents"], facts["tokens"], facts["dtype"]) == (len(DOCUMENTS), store.tokens, "uint16")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a-v1.2.bin", "a-v1.2.idx"]


def test_the_files_are_those_that_megatrons_builder_writes(plain, folder, tmp_path):
    indexed = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    encoder = Encoder.load(folder)
    builder = indexed.IndexedDatasetBuilder(f"{tmp_path}/theirs.bin", indexed.DType.optimal_dtype(encoder.vocab))
    for ids in encoder.encode(DOCUMENTS):
        builder.add_document([encoder.bos, *ids, encoder.eos], [len(ids) + 2])
    builder.finalize(f"{tmp_path}/theirs.idx")
    theirs = [(tmp_path / f"theirs{suffix}").read_bytes() for suffix in (".bin", ".idx")]
    assert made([plain], tmp_path / "ours", folder) == theirs


@pytest.mark.parametrize("workers", [2, 3])
def test_the_number_of_workers_does_not_show(plain, folder, tmp_path, workers):
    assert made([plain], tmp_path / "many", folder, workers) == made([plain], tmp_path / "one", folder)


def test_workers_forked_from_a_fresh_process_write_the_same(plain, folder, tmp_path):
    command = ["-m", "ahkio", "tokenize", plain, "--tokenizer", folder, "--output", tmp_path / "a", "--workers", "2"]
    subprocess.run([sys.executable, *map(str, command)], check=True, timeout=60, env={"PATH": ""})
    assert [(tmp_path / f"a{suffix}").read_bytes() for suffix in (".bin", ".idx")] == made(
        [plain], tmp_path / "b", folder
    )


@pytest.mark.parametrize("aim", [1, 100, 1000, 10**6])
def test_pieces_are_whole_lines_and_all_of_them(plain, folder, tmp_path, monkeypatch, aim):
    monkeypatch.setattr(jsonl, "PIECE_BYTES", aim)
    pieces = cut([plain], 1, tmp_path, Tokeniser(folder))
    data = plain.read_bytes()
    parts = [data[piece.begin : piece.begin + piece.size] for piece in pieces]
    assert b"".join(parts) == data
    assert all(part.endswith(b"\n") for part in parts)
    assert all(one.begin + one.size == other.begin for one, other in pairwise(pieces))
    assert max(map(len, parts)) < aim + max(map(len, data.splitlines(keepends=True)))


def test_inputs_of_any_kind_follow_each_other_in_the_order_given(plain, folder, tmp_path):
    whole = plain.read_bytes().splitlines(keepends=True)
    inputs = [tmp_path / name for name in ("z.jsonl.gz", "y.jsonl.zst", "empty.jsonl", "x.jsonl")]
    inputs[0].write_bytes(gzip.compress(b"".join(whole[:70])))
    inputs[1].write_bytes(zstandard.compress(b"".join(whole[70:200])))
    inputs[2].write_bytes(b"")
    inputs[3].write_bytes(b"\n".join(whole[200:]).rstrip(b"\n"))  # empty lines between, and none at the end
    assert made(inputs, tmp_path / "parts", folder) == made([plain], tmp_path / "whole", folder)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (b"{", "line 251: invalid json; mend the file"),
        (b"[1]", "line 251: not an object"),
        (b'{"text": 5}', "line 251: 'text' is not a string"),
        (b'{"body": "a", "id": 1}', "line 251: no field 'text', but body, id; state the field of the text with --key"),
    ],
)
def test_a_line_that_is_no_document_is_told_by_its_number_and_nothing_is_written(
    plain, folder, tmp_path, monkeypatch, line, sentence
):
    monkeypatch.setattr(jsonl, "PIECE_BYTES", 1000)
    whole = plain.read_bytes().splitlines(keepends=True)
    (tmp_path / "a.jsonl").write_bytes(b"".join([*whole[:250], line + b"\n", *whole[250:]]))
    with pytest.raises(UserError, match=rf"a\.jsonl, {sentence}"):
        made([tmp_path / "a.jsonl"], tmp_path / "out" / "a", folder)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_file_that_is_cut_short_or_missing_is_told_and_an_older_output_stays(plain, folder, tmp_path):
    older = made([plain], tmp_path / "a", folder)
    (tmp_path / "torn.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes())[:-20])
    for name, sentence in (("torn.jsonl.gz", "can't be read to its end"), ("none.jsonl", "There is no .*none.jsonl")):
        with pytest.raises(UserError, match=sentence):
            made([plain, tmp_path / name], tmp_path / "a", folder)
    assert [(tmp_path / f"a{suffix}").read_bytes() for suffix in (".bin", ".idx")] == older
    assert len(list(tmp_path.iterdir())) == 3


def test_the_command_says_what_it_wrote_and_takes_inputs_on_both_sides_of_its_options(plain, folder, tmp_path, capsys):
    words = ["tokenize", str(plain), "--tokenizer", str(folder), "--output", str(tmp_path / "a"), "--workers", "1"]
    assert main([*words, str(plain), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["documents"], facts["tokens"]) == (2 * len(DOCUMENTS), TokenStore(tmp_path).tokens)
    assert main(words) == 0
    assert f"{facts['tokens'] // 2:,} tokens (uint16) of {len(DOCUMENTS):,} documents" in capsys.readouterr().out


def test_the_field_and_the_marks_may_be_stated(folder, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"body": "y"}\n')
    words = ["tokenize", str(tmp_path / "a.jsonl"), "--tokenizer", str(folder), "--output", str(tmp_path / "a")]
    assert main([*words, "--key", "body", "--bos", "<|endoftext|>", "--eos", "<|start|>"]) == 0
    assert TokenStore(tmp_path).document(0)[[0, -1]].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"--tokenizer": "nowhere"}, "nowhere has no tokenizer.json"),
        ({"--key": "body"}, "line 1: no field 'body', but id, text"),
        ({"--output": "/proc/none/a"}, "/proc/none/a can't be written (No such file or directory); nothing was."),
    ],
)
def test_what_is_wrong_is_one_sentence(plain, folder, tmp_path, capsys, change, sentence):
    options = {"--tokenizer": str(folder), "--output": str(tmp_path / "a"), "--workers": "1"} | change
    assert main(["tokenize", str(plain), *(word for option in options.items() for word in option)]) == 2
    assert sentence in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_leaves_nothing_and_says_so(plain, folder, tmp_path, capsys, monkeypatch):
    def interrupted(piece):
        piece.ids.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(jsonl, "encode_piece", interrupted)
    words = ["--tokenizer", str(folder), "--output", str(tmp_path / "a"), "--workers", "1"]
    assert main(["tokenize", str(plain), *words]) == 130
    assert "Stopped; nothing was written to" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
