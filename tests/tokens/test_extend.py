import json
from dataclasses import replace

import pytest
from finnish_corpus import ADDED, CORPUS, SIZE, SPECIAL, EnglishTokenizer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from ahkio.core.errors import UserError
from ahkio.core.stage import build, knowledge
from ahkio.text.corpus import heldout_shard, read_shard, train_shards
from ahkio.tokens import extend
from ahkio.tokens.extend import ExtendedTokenizer, refuse_other_kinds
from ahkio.tokens.merges import learn, pairs_in, pairs_of_dead
from ahkio.tokens.tokenizer import NASTY, Encoder

STAGE = ExtendedTokenizer(
    tokenizer=EnglishTokenizer(), corpus=CORPUS, domains=("finnish",), kept=("english",), size=300
)
FIRST = SIZE + len(SPECIAL) + 1


def quiet(text): ...


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = tmp_path_factory.mktemp("store")
    build(CORPUS, store, quiet)
    return store


@pytest.fixture(scope="module", params=["in", "out", "text"])
def stage(request):
    return replace(STAGE, tokenizer=EnglishTokenizer(kind=request.param))


@pytest.fixture(scope="module")
def made(store, stage):
    return build(stage, store, quiet)


@pytest.fixture(scope="module")
def old(store, stage, made):
    return Encoder.load(store / stage.tokenizer.name)


@pytest.fixture(scope="module")
def new(made):
    return Encoder.load(made.path)


def heldout(store, domain):
    return [document.text for document in read_shard(heldout_shard(store / CORPUS.name, domain))]


def trained_on(store, domain):
    return [document.text for shard in train_shards(store / CORPUS.name, domain) for document in read_shard(shard)]


def test_old_ids_are_untouched_and_new_ones_follow_the_last(old, new, made):
    before, after = old.tokenizer.get_vocab(), new.tokenizer.get_vocab()
    assert {token: after[token] for token in before} == before
    assert sorted(after.values()) == list(range(FIRST + 300))
    assert (made.facts["first"], made.facts["added"], made.facts["vocab"]) == (FIRST, 300, FIRST + 300)
    assert (new.bos, new.eos) == (old.bos, old.eos)


def test_a_text_is_cut_as_before_and_then_joined(store, old, new, made):
    """So no text gets more tokens, and one without a new token keeps its ids."""
    pieces = json.loads((made.path / "pieces.json").read_bytes())
    parts = {pieces["first"] + i: one for i, one in enumerate(pieces["pieces"])}
    texts = [*heldout(store, "finnish"), *NASTY, f"x {ADDED} <|start|>"]
    apart = [[piece for token in ids for piece in parts.get(token, [token])] for ids in new.encode(texts)]
    assert apart == old.encode(texts)


def test_every_new_token_comes_out_of_its_own_text(new):
    for number in range(FIRST, FIRST + 300):
        token = new.tokenizer.id_to_token(number)
        assert [piece.id for piece in new.tokenizer.model.tokenize(token)] == [number]


def test_finnish_gets_fewer_tokens_and_english_keeps_its_ids(store, old, new, made):
    finnish, english = heldout(store, "finnish"), heldout(store, "english")
    before, after = (sum(map(len, encoder.encode(finnish))) for encoder in (old, new))
    assert after < 0.85 * before
    kept = trained_on(store, "english")
    assert new.encode(kept) == old.encode(kept)
    changed = sum(a != b for a, b in zip(old.encode(english), new.encode(english), strict=True))
    assert changed <= 0.1 * len(english)
    facts = made.facts["heldout"]
    assert facts["finnish"]["tokens_per_word"] < 0.85 * facts["finnish"]["tokens_per_word_before"]
    assert facts["english"]["documents_changed"] == changed


def test_the_text_of_a_special_token_stays_text_and_every_byte_comes_back(store, new):
    texts = [*NASTY, *heldout(store, "finnish")[:5], *(f"a{name} {name}1" for name in (*SPECIAL, ADDED))]
    ids = new.encode(texts)
    assert not {new.bos, new.eos} & {token for row in ids for token in row}
    assert [new.decode(row, skip_special=False) for row in ids] == texts
    fast = new.proven(texts)
    assert fast.engine == "fastokens" or "not installed" in fast.note


def test_transformers_reads_it_and_encodes_the_same(store, new, made):
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(made.path, local_files_only=True)
    texts = heldout(store, "finnish")
    assert theirs(texts, add_special_tokens=False)["input_ids"] == new.encode(texts)


def test_the_same_text_gives_the_same_tokenizer(store, tmp_path):
    out = tmp_path / "again"
    out.mkdir()
    made = build(STAGE, store, quiet)
    inputs = {stage: build(stage, store, quiet) for stage in (STAGE.tokenizer, STAGE.corpus)}
    STAGE.run(out, inputs)
    for name in ("tokenizer.json", "pieces.json"):
        assert (out / name).read_bytes() == (made.path / name).read_bytes()


def test_an_extended_tokenizer_can_be_extended(store):
    twice = replace(STAGE, tokenizer=STAGE, size=50)
    made = build(twice, store, quiet)
    assert (made.facts["first"], made.facts["vocab"]) == (FIRST + 300, FIRST + 350)


def test_a_part_of_the_text_is_taken_from_all_of_it(store):
    corpus = build(CORPUS, store, quiet)
    whole = list(extend._sample(corpus, ("finnish",), 1 << 30))
    part = list(extend._sample(corpus, ("finnish",), sum(len(text.encode()) for text in whole) // 4))
    assert whole == trained_on(store, "finnish")
    assert len(part) == len(whole) // 4
    assert part[-1] in whole[-4:]


# ---------------------------------------------------------------------------------------------------------------------
# Merges


def byte_level(merges=(), extra=()):
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*letters, *(left + right for left, right in merges), *extra]
    tokenizer = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


def named(tokenizer, merges):
    return ["".join(map(tokenizer.id_to_token, [*left, *right])) for left, right in merges]


def test_merges_go_on_from_the_pieces_that_there_are():
    tokenizer = byte_level([("a", "b")])
    texts = ["abc abc abcd abcd"] * 3
    assert named(tokenizer, learn(tokenizer, texts, 10, set())) == ["abc", "Ġabc", "Ġabcd"]
    assert named(tokenizer, learn(tokenizer, texts, 1, set())) == ["abc"]


def test_nothing_is_joined_over_pieces_kept_apart():
    tokenizer = byte_level([("a", "b")])
    apart = pairs_in(tokenizer, ["xbc"])
    assert apart == {tuple(tokenizer.token_to_id(name) for name in pair) for pair in ("xb", "bc")}
    assert named(tokenizer, learn(tokenizer, ["dbce dbce"] * 3, 10, apart)) == ["ce", "db", "Ġdb"]


def test_a_token_that_is_there_is_not_made_again():
    tokenizer = byte_level(extra=("cat",))
    apart = pairs_of_dead(json.loads(tokenizer.to_str()))
    assert apart == {(tokenizer.token_to_id("c"), tokenizer.token_to_id("a"))}
    assert named(tokenizer, learn(tokenizer, ["cat cat"] * 3, 10, apart)) == ["at", "Ġc"]


# ---------------------------------------------------------------------------------------------------------------------
# Refusals


def test_a_text_too_small_says_how_many_tokens_it_gives(store):
    with pytest.raises(UserError, match=r"gives only [\d,]+ new tokens .* set size=\d+ or less"):
        build(replace(STAGE, size=10**6), store, quiet)


def test_settings_that_can_not_be_are_refused():
    with pytest.raises(UserError, match="size is 0"):
        replace(STAGE, size=0)
    with pytest.raises(UserError, match="at least one"):
        replace(STAGE, domains=())
    with pytest.raises(UserError, match="kept as well"):
        replace(STAGE, kept=("finnish",))


def test_a_domain_that_is_not_there_is_refused(store):
    with pytest.raises(UserError, match=r"no domain 'finish'.*finnish, english"):
        build(replace(STAGE, domains=("finish",)), store, quiet)


OTHERS = {
    "a Unigram tokenizer": Tokenizer(models.Unigram([("a", -1.0)], unk_id=0)),
    "a WordPiece tokenizer": Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]")),
    "has no ByteLevel": Tokenizer(models.BPE({"a": 0}, [])),
    "has byte_fallback": Tokenizer(models.BPE({"a": 0}, [], byte_fallback=True)),
    "has dropout": Tokenizer(models.BPE({"a": 0}, [], dropout=0.1)),
}


@pytest.mark.parametrize("said", OTHERS)
def test_other_kinds_of_tokenizers_are_refused(said, tmp_path):
    OTHERS[said].normalizer = normalizers.NFC()
    with pytest.raises(UserError, match=f"{said}.*only a byte-level BPE") as refused:
        refuse_other_kinds(json.loads(OTHERS[said].to_str()), tmp_path / "tokenizer.json")
    assert "\n" not in str(refused.value)


def test_a_plan_knows_how_many_tokens_come(tmp_path):
    assert knowledge(tmp_path)(STAGE)["added"] == 300
