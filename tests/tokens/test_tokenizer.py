import json
import sys

import pytest
from tiny_tokenizer import SPECIAL, TEXTS, write_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers

from ahkio.core.errors import UserError
from ahkio.tokens.tokenizer import NASTY, Encoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def rewrite(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_every_byte_comes_back(folder):
    encoder = Encoder.load(folder)
    texts = [*NASTY, *TEXTS]
    assert [encoder.decode(ids, skip_special=False) for ids in encoder.encode(texts)] == texts


def test_a_truncation_setting_and_a_post_processor_in_the_file_touch_nothing(folder):
    encoder = Encoder.load(folder)
    assert len(encoder.encode(["Hyvää yötä, sanoi yö ja sulki oven. " * 50])[0]) > 100
    assert 1 not in encoder.encode(["yö"])[0]


def test_the_text_of_a_special_token_never_becomes_its_id(folder):
    encoder = Encoder.load(folder).proven([])
    for name in SPECIAL:
        ids = encoder.encode([f"a{name}b {name}"])[0]
        assert not {0, 1} & set(ids)
        assert encoder.decode(ids, skip_special=True) == f"a{name}b {name}"


def test_added_tokens_that_are_not_special_leave_special_texts_as_they_are(tmp_path):
    write_tokenizer(tmp_path, vocab_size=301)
    data = json.loads((tmp_path / "tokenizer.json").read_text())
    note = data["added_tokens"][0] | {"id": 300, "content": "<note>", "special": False}
    rewrite(tmp_path / "tokenizer.json", added_tokens=[*data["added_tokens"], note])
    encoder = Encoder.load(tmp_path).proven([])
    for name in SPECIAL:
        ids = encoder.encode([f"<note>{name}<note> {name}"])[0]
        assert ids.count(300) == 2  # it stands for its text, as any token that is not special
        assert not {0, 1} & set(ids)
        assert encoder.decode(ids, skip_special=False) == f"<note>{name}<note> {name}"


def test_a_mark_that_a_text_can_make_is_refused(tmp_path):
    """An added token that is not special would be found in a text, which then ended itself."""
    write_tokenizer(tmp_path)
    data = json.loads((tmp_path / "tokenizer.json").read_text())
    rewrite(tmp_path / "tokenizer.json", added_tokens=[token | {"special": False} for token in data["added_tokens"]])
    with pytest.raises(UserError, match=r"turns the text '<\|(endoftext|start)\|>' into a special token's id"):
        Encoder.load(tmp_path)


def test_text_is_encoded_as_by_a_tokenizer_that_knows_no_special_tokens(folder):
    without = json.loads((folder / "tokenizer.json").read_text())
    without |= {"added_tokens": [], "truncation": None}
    ordinary = Tokenizer.from_str(json.dumps(without))
    texts = [*NASTY, *TEXTS, *SPECIAL, "x<|endoftext|><|start|>\n<|endoftext|"]
    expected = [ordinary.encode(text, add_special_tokens=False).ids for text in texts]
    assert Encoder.load(folder).encode(texts) == expected


def test_fastokens_is_used_where_it_equals_tokenizers(folder):
    pytest.importorskip("fastokens")
    reference = Encoder.load(folder)
    fast = reference.proven(TEXTS)
    assert (fast.engine, fast.note) == ("fastokens", "")
    assert fast.encode([*NASTY, *TEXTS, *SPECIAL]) == reference.encode([*NASTY, *TEXTS, *SPECIAL])
    assert fast.encode([]) == reference.encode([]) == []


class Wrong:
    """Stands for a fast tokenizer that gives some other ids."""

    Tokenizer = type("Tokenizer", (), {"from_file": staticmethod(lambda path: Wrong())})

    def no_truncation(self): ...

    def no_padding(self): ...

    def encode_batch_flat(self, texts, **settings):
        counts = [0, *(len(text) for text in texts)]
        bounds = [sum(counts[: i + 1]) for i in range(len(counts))]
        return bytes(4 * bounds[-1]), b"".join(bound.to_bytes(8, "little") for bound in bounds)


@pytest.mark.parametrize(
    ("module", "note"),
    [(None, "is not installed"), (Wrong, "differs from tokenizers on 'Hyvää"), (object(), "refuses this tokenizer")],
)
def test_without_proof_tokenizers_stays_and_the_reason_is_told(tmp_path, monkeypatch, module, note):
    monkeypatch.setitem(sys.modules, "fastokens", module)
    encoder = Encoder.load(write_tokenizer(tmp_path)).proven(TEXTS)
    assert encoder.engine == "tokenizers"
    assert note in encoder.note


def test_marks_come_from_the_folder_unless_stated(folder, tmp_path):
    assert (Encoder.load(folder).bos, Encoder.load(folder).eos) == (1, 0)
    assert Encoder.load(folder, bos="<|endoftext|>", eos="<|start|>").eos == 1
    write_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    rewrite(tmp_path / "config.json", eos_token_id=[1, 0])
    assert (Encoder.load(tmp_path).bos, Encoder.load(tmp_path).eos) == (None, 1)


def test_an_unknown_mark_is_refused_with_near_names(folder):
    with pytest.raises(UserError, match=r"'<\|endofttext\|>' is not a token .*: <\|endoftext\|>"):
        Encoder.load(folder, eos="<|endofttext|>")


def test_a_folder_that_names_no_end_of_text_is_refused(tmp_path):
    write_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(UserError, match="names no end-of-text token"):
        Encoder.load(tmp_path)


def test_a_tokenizer_that_does_not_fit_the_model_is_refused(tmp_path):
    write_tokenizer(tmp_path, vocab_size=299)
    with pytest.raises(UserError, match="does not fit the model: it gives ids up to 299 and the model knows 299"):
        Encoder.load(tmp_path)


def test_a_missing_or_broken_file_is_told_in_one_sentence(tmp_path):
    with pytest.raises(UserError, match="has no tokenizer"):
        Encoder.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(UserError, match="can't be read as a tokenizer"):
        Encoder.load(tmp_path)


def test_a_tokenizer_that_can_not_keep_special_texts_apart_is_refused(tmp_path):
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "</s>": 1, "word": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["[UNK]", "</s>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="turns the text '</s>' into a special token's id"):
        Encoder.load(tmp_path, eos="</s>")
