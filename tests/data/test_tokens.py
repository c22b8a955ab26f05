import pathlib
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

from dessilbi_jax import data
from dessilbi_jax.data import Tokens, _tokens


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "text.txt"
    file.write_bytes(np.random.default_rng(0).integers(0, 256, 1003, dtype=np.uint8).tobytes())
    return file


def everything(part, size, **sharding):
    x, y = zip(*part.batches(size, **sharding), strict=True)
    return np.concatenate(x), np.concatenate(y)


def test_a_text_is_its_bytes_with_the_last_tenth_for_tests(text):
    tokens = data.load("text", text=text, context=16)
    assert isinstance(tokens, data.Source)
    assert (tokens.name, tokens.kind, tokens.num_classes) == ("text", "tokens", 256)
    assert (tokens.input_shape, tokens.mean, tokens.std) == ((16,), (), ())
    content = np.frombuffer(text.read_bytes(), np.uint8)
    np.testing.assert_array_equal(tokens.train_tokens, content[:903])
    np.testing.assert_array_equal(tokens.test_tokens, content[903:])
    assert (tokens.train_size, tokens.test_size) == (56, 6)  # 902 // 16 and 99 // 16
    assert tokens.resident


def test_pick_cuts_windows(text):
    tokens = data.load("text", text=text, context=16)
    arrays = jax.device_put(tokens.arrays())
    assert [a.dtype for a in arrays] == [np.uint8, np.int32]
    rows = np.array([0, 55, 3], np.int32)
    x, y = jax.jit(tokens.pick)(arrays, rows)
    assert (x.dtype, y.dtype) == (np.int32, np.int32)
    for i, row in enumerate(rows):
        np.testing.assert_array_equal(x[i], tokens.train_tokens[row * 16 : row * 16 + 16])
        np.testing.assert_array_equal(y[i], tokens.train_tokens[row * 16 + 1 : row * 16 + 17])


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_the_test_part_is_complete_and_in_order(text, shards):
    tokens = data.load("text", text=text, context=16)
    part = tokens.test_part()
    assert len(part) == 6
    split = [list(part.batches(4, shard=k, shards=shards)) for k in range(shards)]
    assert [len(batches) for batches in split] == [2] * shards
    joined = [
        tuple(map(np.concatenate, zip(*each, strict=True))) for each in zip(*split, strict=True)
    ]
    x, y = map(np.concatenate, zip(*joined, strict=True))
    assert (x.shape, y.shape, x.dtype, y.dtype) == ((8, 16), (8, 16), np.int32, np.int32)
    np.testing.assert_array_equal(x[:6].ravel(), tokens.test_tokens[:96])
    np.testing.assert_array_equal(y[:6].ravel(), tokens.test_tokens[1:97])
    assert not x[6:].any()
    assert (y[6:] == -1).all()


def test_set_aside():
    tokens = Tokens.from_arrays("count", np.arange(801), np.arange(81), 1000, context=8)
    rest, part = tokens.set_aside(30, seed=1)
    assert (rest.train_size, len(part), rest.test_size) == (70, 30, 10)
    x, _ = rest.pick(rest.arrays(), np.arange(70))
    aside, _ = everything(part, 30)
    np.testing.assert_array_equal(np.sort(np.concatenate([x, aside]).ravel()), np.arange(800))
    other, _ = everything(tokens.set_aside(30, seed=2)[1], 30)
    assert (other != aside).any()
    twice, again = rest.set_aside(20, seed=1)
    assert set(everything(again, 20)[0].ravel()).isdisjoint(aside.ravel())
    assert twice.train_size == 50
    with pytest.raises(ValueError, match="less than the 100 train rows of count, got 100"):
        tokens.set_aside(100)


def test_a_large_text_streams_the_same_windows(text, monkeypatch):
    monkeypatch.setattr(_tokens, "RESIDENT_BYTES", 900)
    tokens = data.load("text", text=text, context=16)
    assert not tokens.resident
    with pytest.raises(ValueError, match=r"text is too large for a device; .* `train_batches`"):
        tokens.arrays()
    whole = tokens.train_batches(20, seed=1)
    halves = [tokens.train_batches(20, seed=1, shard=k, shards=2) for k in (0, 1)]
    seen = []
    for step in range(4):
        if step == 2:
            state = whole.get_state()
        x, y = next(whole)
        parts = [next(half) for half in halves]
        np.testing.assert_array_equal(x, np.concatenate([part[0] for part in parts]))
        np.testing.assert_array_equal(x[:, 1:], y[:, :-1])
        seen.append(x)
    epochs = [{row.tobytes() for x in seen[i : i + 2] for row in x} for i in (0, 2)]
    windows = {row.astype(np.int32).tobytes() for row in tokens.train_tokens[:896].reshape(-1, 16)}
    assert all(len(epoch) == 40 and epoch < windows for epoch in epochs)
    assert epochs[0] != epochs[1]
    resumed = tokens.train_batches(20, seed=1)
    resumed.set_state(state)
    np.testing.assert_array_equal(next(resumed)[0], seen[2])
    for batches in (whole, resumed, *halves):
        batches.close()
        batches.close()


@pytest.mark.parametrize(
    ("size", "context", "message"),
    [
        (100, 16, r"the test part has 10 tokens, a window of context 16 needs 17"),
        (0, 16, "is empty"),
        (1000, 0, "context must be at least 1, got 0"),
    ],
)
def test_texts_that_will_not_do(tmp_path, size, context, message):
    (tmp_path / "text").write_bytes(b"x" * size)
    with pytest.raises(ValueError, match=message):
        data.load("text", text=tmp_path / "text", context=context)


def test_a_text_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist; give a text file"):
        data.load("text", text=tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="is not a file"):
        data.load("text", text=tmp_path)


def test_arrays_that_are_no_tokens():
    good = np.arange(20)
    with pytest.raises(
        ValueError, match=r"train tokens must be integers \[N\], got float64 \[20\]"
    ):
        Tokens.from_arrays("x", good / 2, good, 20, 4)
    with pytest.raises(ValueError, match=r"test tokens must .* got int64 \[2, 10\]"):
        Tokens.from_arrays("x", good, good.reshape(2, 10), 20, 4)


class Words:
    """Stands in for `tokenizers`: a word is a token, its number that of its first occurrence."""

    calls = 0

    class Tokenizer:
        @classmethod
        def from_file(cls, file):
            lines = pathlib.Path(file).read_text().split()
            if lines[0] != "words":
                raise RuntimeError("unknown format")
            tokenizer = cls()
            tokenizer.words = {word: i for i, word in enumerate(lines)}
            return tokenizer

        def get_vocab_size(self):
            return len(self.words)

        def encode(self, text, add_special_tokens):
            assert not add_special_tokens
            Words.calls += 1
            return types.SimpleNamespace(ids=[self.words[word] for word in text.split()])


@pytest.fixture
def words(tmp_path, monkeypatch):
    """A text of 3,000 words, its tokenizer file, and which word stands where."""
    monkeypatch.setitem(sys.modules, "tokenizers", Words)
    monkeypatch.setattr("dessilbi_jax.data._text._PIECE", 5000)
    Words.calls = 0
    order = np.random.default_rng(0).integers(0, 300, 3000)
    lines = [" ".join(f"w{i}" for i in line) + "\r\n" for line in order.reshape(-1, 10)]
    (tmp_path / "text.txt").write_bytes("".join(lines).replace("w299", "w299 ü").encode())
    (tmp_path / "tokenizer.json").write_text(
        "words " + " ".join(f"w{i}" for i in range(300)) + " ü"
    )
    numbers = [n for i in order for n in ((i + 1, 301) if i == 299 else (i + 1,))]
    return tmp_path / "text.txt", tmp_path / "tokenizer.json", numbers


def test_a_tokenizer_file(tmp_path, words):
    file, tokenizer, numbers = words
    cache = tmp_path / "kept"
    for _ in range(2):
        tokens = data.load("text", None, cache, text=file, tokenizer=tokenizer, context=16)
        assert (tokens.num_classes, tokens.train_tokens.dtype) == (302, np.uint16)
        together = np.concatenate([tokens.train_tokens, tokens.test_tokens])
        assert together.tolist() == numbers
        assert len(tokens.test_tokens) == len(numbers) // 10
    first = Words.calls
    assert first > 2  # in pieces, and the second time from the cache
    assert len(list(cache.iterdir())) == 1
    tokenizer.write_text("words " + " ".join(f"w{i}" for i in range(254, 300)) + " ü")
    file.write_text("w254 w299 ü " * 40)
    tokens = data.load("text", None, cache, text=file, tokenizer=tokenizer, context=8)
    assert tokens.train_tokens.dtype == np.uint8
    assert tokens.train_tokens[:4].tolist() == [1, 46, 47, 1]


def test_tokenizers_that_will_not_do(tmp_path, words, monkeypatch):
    file, tokenizer, _ = words

    def message(kind):
        with pytest.raises(kind) as caught:
            data.load("text", text=file, tokenizer=tokenizer)
        return str(caught.value)

    file.write_bytes(b"w1 w2\n" * 2000 + b"w1 \xff\n")
    assert "text.txt is not UTF-8 (invalid start byte" in message(ValueError)
    assert not list((tmp_path / "cache").glob("*"))  # nothing half-written
    tokenizer.write_text("sounds")
    assert "tokenizer.json is not a tokenizer file: unknown format" in message(ValueError)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert "needs tokenizers: install it with `pip install tokenizers`" in message(ImportError)
    tokenizer.unlink()
    assert "tokenizer.json does not exist" in message(FileNotFoundError)


@pytest.mark.process
def test_nothing_heavy_is_imported_before_it_is_needed(tmp_path, text):
    program = (
        "import sys; from dessilbi_jax import data;"
        f"t = data.load('text', text={str(text)!r}, context=8); next(t.test_part().batches(2));"
        f"d = data.StreamedImages, data.load('digits').test_part();"
        "print([m for m in ('tensorflow_datasets', 'array_record', 'PIL', 'grain', 'tokenizers')"
        " if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (shown.stdout.strip(), shown.returncode) == ("[]", 0), shown.stderr
