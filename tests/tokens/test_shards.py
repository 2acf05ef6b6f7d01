import struct
import time

import numpy as np
import pytest

from ahkio.core.errors import UserError
from ahkio.tokens.shards import HEADER, MAGIC, ShardWriter, TokenStore, id_dtype, open_shard

DOCUMENTS = [[5, 1, 0], [7, 0], [9, 9, 9, 9, 0], [0], [3, 4, 0]]


def write(prefix, documents, vocab=300, text_bytes=None):
    with ShardWriter(prefix, id_dtype(vocab)) as shard:
        for document in documents:
            shard.add(np.array(document, np.uint32), np.array([len(document)]))
        if text_bytes:
            shard.add_text_bytes(text_bytes)
    return prefix


@pytest.fixture
def store(tmp_path):
    write(tmp_path / "shard-00000", DOCUMENTS[:2], text_bytes=[10, 20])
    write(tmp_path / "shard-00001", [], text_bytes=[])
    write(tmp_path / "shard-00002", DOCUMENTS[2:], text_bytes=[30, 40, 50])
    return TokenStore(tmp_path)


def test_the_files_are_megatrons_to_the_byte(tmp_path):
    write(tmp_path / "a", [[1, 2, 0], [70, 0]], vocab=65_499)
    assert (tmp_path / "a.bin").read_bytes() == bytes.fromhex("0100 0200 0000 4600 0000")
    index = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, 2, 3) + struct.pack("<2i2q3q", 3, 2, 0, 6, 0, 1, 2)
    assert (tmp_path / "a.idx").read_bytes() == index
    write(tmp_path / "b", [[1, 2, 0], [70_000, 0]], vocab=65_500)
    assert (tmp_path / "b.bin").read_bytes() == struct.pack("<5i", 1, 2, 0, 70_000, 0)
    index = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 4, 2, 3) + struct.pack("<2i2q3q", 3, 2, 0, 12, 0, 1, 2)
    assert (tmp_path / "b.idx").read_bytes() == index


@pytest.mark.parametrize("vocab", [300, 128_256])
def test_megatron_core_reads_ours_and_writes_the_same_bytes(tmp_path, vocab):
    indexed = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    torch = pytest.importorskip("torch")
    ours, theirs = write(tmp_path / "ours", DOCUMENTS, vocab), tmp_path / "theirs"
    builder = indexed.IndexedDatasetBuilder(f"{theirs}.bin", indexed.DType.optimal_dtype(vocab))
    for document in DOCUMENTS:
        builder.add_document(torch.tensor(document), [len(document)])
    builder.finalize(f"{theirs}.idx")
    for suffix in (".bin", ".idx"):
        assert ours.with_suffix(suffix).read_bytes() == theirs.with_suffix(suffix).read_bytes()
    dataset = indexed.IndexedDataset(str(ours))
    assert [dataset[i].tolist() for i in range(len(dataset))] == DOCUMENTS
    store = TokenStore([theirs])
    assert [store.document(i).tolist() for i in range(store.documents)] == DOCUMENTS


def test_any_window_is_that_part_of_the_stream_across_shards(store):
    stream = [token for document in DOCUMENTS for token in document]
    heads = np.cumsum([0, *map(len, DOCUMENTS)]).tolist()
    assert (store.tokens, store.documents) == (len(stream), len(DOCUMENTS))
    for start in range(len(stream)):
        assert store.document_at(start) == max(i for i, head in enumerate(heads) if head <= start)
        for length in range(len(stream) - start + 1):
            assert store.read(start, length).tolist() == stream[start : start + length]
            expected = [head - start for head in heads[:-1] if start <= head < start + length]
            assert store.document_bounds(start, length).tolist() == expected


def test_a_document_and_its_size_are_found_by_number(store):
    assert [store.document(i).tolist() for i in range(5)] == DOCUMENTS
    assert [store.document_bytes(i) for i in range(5)] == [10, 20, 30, 40, 50]


def test_a_window_outside_the_stream_is_an_error(store):
    for start, length in ((-1, 2), (0, store.tokens + 1), (store.tokens, 1)):
        with pytest.raises(IndexError):
            store.read(start, length)
    with pytest.raises(IndexError):
        store.document(store.documents)


def test_opening_and_reading_does_not_depend_on_the_number_of_documents(tmp_path):
    """300 million documents of eight tokens, in files with holes: a pass over them would take many seconds."""
    n = 300_000_000
    with open(tmp_path / "big.idx", "wb") as file:
        file.write(HEADER.pack(MAGIC, 1, 8, n, n + 1))
        file.truncate(HEADER.size + 12 * n + 8 * (n + 1))
        file.seek(HEADER.size + 4 * (n - 1))
        file.write(struct.pack("<i", 8))
        file.seek(HEADER.size + 4 * n + 8 * (n - 1))
        file.write(struct.pack("<q", (n - 1) * 16))
    with open(tmp_path / "big.bin", "wb") as file:
        file.truncate(n * 16)
    began = time.perf_counter()
    store = TokenStore(tmp_path)
    for start in range(0, store.tokens - 4096, store.tokens // 20):
        store.read(start, 4096)
        store.document_at(start)
    assert store.tokens == 8 * n
    assert time.perf_counter() - began < 1.0


def test_a_torn_shard_is_refused(tmp_path):
    prefix = write(tmp_path / "shard-00000", DOCUMENTS)
    whole = {suffix: prefix.with_suffix(suffix).read_bytes() for suffix in (".bin", ".idx")}
    for suffix, kept, sentence in [
        (".bin", 20, r"shard-00000.bin holds 20 bytes and its index promises 28"),
        (".bin", 0, r"shard-00000.bin holds 0 bytes"),
        (".idx", 60, r"shard-00000.idx is cut short"),
        (".idx", 10, r"is not a Megatron index"),
    ]:
        prefix.with_suffix(suffix).write_bytes(whole[suffix][:kept])
        with pytest.raises(UserError, match=sentence):
            TokenStore(tmp_path)
        prefix.with_suffix(suffix).write_bytes(whole[suffix])
    prefix.with_suffix(".bin").unlink()
    with pytest.raises(UserError, match=r"shard-00000.bin is missing"):
        TokenStore(tmp_path)


def test_a_shard_that_fails_half_way_leaves_nothing(tmp_path):
    def fail():
        with ShardWriter(tmp_path / "shard-00000", id_dtype(300)) as shard:
            shard.add(np.array([1, 0]), np.array([2]))
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        fail()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="holds no token shards"):
        TokenStore(tmp_path)


def test_text_sizes_are_asked_for_only_where_they_are_kept(tmp_path):
    prefix = write(tmp_path / "a", DOCUMENTS)
    assert open_shard(prefix).text_bytes is None
    with pytest.raises(UserError, match="held-out side only"):
        TokenStore([prefix]).document_bytes(0)
