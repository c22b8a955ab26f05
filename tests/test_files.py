"""Files and folders are written at once or not at all, whoever writes them."""

import errno
import os
import re
import resource

import jax.numpy as jnp
import numpy as np
import pytest

import dessilbi_jax as dl
from dessilbi_jax import files
from dessilbi_jax.data import _text
from dessilbi_jax.train.run_folder import folder, weights

PARAMS = {"kernel": jnp.ones((2, 3))}


def plan(place, n):
    dl.Plan({"a": (9, 3)}, {"a": {0: tuple(range(n))}}).save(place)


def ticket(place, n):
    mask = np.arange(9) < n
    dl.Ticket({"kernel": mask}, n, ("kernel",), n / 9).save(place)


def whole_folder(place, n):
    with folder.written_at_once(
        place, overwrite=True, kind="note", own=r"result\.json|inner/bytes"
    ) as part:
        files.write_json(part / "result.json", {"kind": "note", "n": n})
        (part / "inner").mkdir()
        (part / "inner" / "bytes").write_bytes(bytes(50 + n))


# What writes files of ours: each writes something that hangs on a number, 1 to 9.
WRITERS = {
    "bytes": lambda place, n: files.write_atomically(place, bytes(50 + n)),
    "text": lambda place, n: files.write_atomically(place, "ü" * (50 + n)),
    "json": lambda place, n: files.write_json(place, {"numbers": [n] * 50}),
    "archive": lambda place, n: files.write(place, {"format": 1}, {"a": np.arange(n)}),
    "ticket": ticket,
    "plan": plan,
    "weights": lambda place, n: weights.write_weights(place, {"w": n * PARAMS["kernel"]}, {}),
    "tokens": lambda place, n: _text._store(place, iter([np.full(50, n)] * 2)),
    "folder": whole_folder,
}


def content(place):
    """Every file below a folder with its bytes, and every folder."""
    return {
        path.relative_to(place): path.read_bytes() if path.is_file() else None
        for path in place.rglob("*")
    }


def fails_with(error):
    def fail(*args, **kwargs):
        raise error

    return fail


def full_disk(monkeypatch, call):
    """The disk takes no more than some bytes of a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40, hard))
    try:
        call()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def unsynced(monkeypatch, call):
    """The disk turns out to be full when the file is synced."""
    monkeypatch.setattr(os, "fsync", fails_with(OSError(errno.ENOSPC, "No space left on device")))
    call()


def unmoved(monkeypatch, call):
    """The finished file cannot be moved to its place."""
    monkeypatch.setattr(os, "replace", fails_with(OSError(errno.EACCES, "Permission denied")))
    call()


@pytest.mark.parametrize("there", [True, False], ids=["over an old one", "a new one"])
@pytest.mark.parametrize("failure", [full_disk, unsynced, unmoved], ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", WRITERS)
def test_a_write_that_fails_leaves_what_was_there_and_says_so(
    name, failure, there, tmp_path, monkeypatch
):
    place = tmp_path / "a thing"
    if there:
        WRITERS[name](place, 1)

    def write():
        WRITERS[name](place, 2)

    before = content(tmp_path)
    with pytest.raises(OSError, match=re.escape(str(place))) as caught, monkeypatch.context() as m:
        failure(m, write)
    told = str(caught.value)
    assert caught.value.filename == str(place)
    assert ("what was there is whole" if there else "nothing of it is left") in told
    assert "make room, give write permission or choose another place" in told
    assert content(tmp_path) == before
    write()
    assert content(tmp_path) != before
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(files.PART)]


def test_an_interrupt_leaves_what_was_there(tmp_path):
    WRITERS["folder"](tmp_path / "a", 1)
    WRITERS["bytes"](tmp_path / "b", 1)
    before = content(tmp_path)

    def interrupted(_):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", interrupted)
        for name, place in (("folder", "a"), ("bytes", "b")):
            with pytest.raises(KeyboardInterrupt):
                WRITERS[name](tmp_path / place, 2)
    assert content(tmp_path) == before


def test_a_folder_that_cannot_take_the_place_of_the_old_one_gives_it_back(tmp_path, monkeypatch):
    WRITERS["folder"](tmp_path / "a", 1)
    before, moved, real = content(tmp_path), [], os.replace

    def replace(source, target):
        moved.append(target)
        if len(moved) == 2:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        WRITERS["folder"](tmp_path / "a", 2)
    assert content(tmp_path) == before


def test_what_a_kill_leaves_is_no_file_of_the_run_and_tidied_away(tmp_path):
    place = tmp_path / "norms.npz"
    files.write_atomically(place, b"old")
    killed = files.new_file(place)
    killed.__enter__().write(b"half")
    assert place.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 2
    folder.tidy(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["norms.npz"]
    killed.gen.close()


def path_of(n):
    path = dl.SolutionPath()
    tx = dl.dessilbi(0.1, nu=1.0, lam=0.15)
    path.record(n, tx.init(PARAMS))
    return path


# What saves one file, by the name of what it writes.
SAVERS = {
    "solution path": lambda file: path_of(1).save(file),
    "ticket": lambda file: ticket(file, 2),
    "plan": lambda file: plan(file, 2),
}


@pytest.mark.parametrize("name", SAVERS)
def test_only_a_file_of_the_same_kind_is_replaced(name, tmp_path):
    place, other = tmp_path / "place", tmp_path / "other"
    place.mkdir()
    (place / "mine.txt").write_text("mine")
    with pytest.raises(IsADirectoryError, match="is a folder, which no file replaces"):
        SAVERS[name](place)
    others = [lambda: other.write_text("mine")]
    others += [lambda kind=kind: SAVERS[kind](other) for kind in SAVERS if kind != name]
    for write in others:
        other.unlink(missing_ok=True)
        write()
        before = content(tmp_path)
        with pytest.raises(FileExistsError, match=f"is no {name}, so that it is not replaced"):
            SAVERS[name](other)
        assert content(tmp_path) == before
    # Its own, an empty one, and one of its own that was cut off.
    for part in (slice(0), slice(None), slice(60)):
        other.unlink()
        SAVERS[name](other)
        other.write_bytes(other.read_bytes()[part])
        SAVERS[name](other)
    other.write_bytes(b"PK\x03\x04" + bytes(90))
    with pytest.raises(FileExistsError):
        SAVERS[name](other)


def test_a_previous_path_that_is_none_is_not_replaced(tmp_path):
    place, before = tmp_path / "path.npz", tmp_path / "path.npz.previous"
    path_of(1).save(place)
    before.write_text("mine")
    with pytest.raises(FileExistsError, match=r"path\.npz\.previous is there and is no solution"):
        path_of(2).save(place)
    assert before.read_text() == "mine"


def test_a_folder_with_anothers_file_in_it_is_not_replaced(tmp_path):
    WRITERS["folder"](tmp_path / "a", 1)
    (tmp_path / "a" / "notes.txt").write_text("mine")
    before = content(tmp_path)
    with pytest.raises(FileExistsError, match=r"did not write \(notes\.txt\); none is deleted"):
        WRITERS["folder"](tmp_path / "a", 2)
    assert content(tmp_path) == before


def test_two_that_write_one_file_do_not_meet(tmp_path):
    place = tmp_path / "a"
    with files.new_file(place) as first, files.new_file(place) as second:
        first.write(b"first" * 9)
        second.write(b"second")
    assert place.read_bytes() == b"first" * 9
    assert list(tmp_path.iterdir()) == [place]


def test_an_error_of_another_file_keeps_its_own_words(tmp_path):
    with (
        pytest.raises(FileNotFoundError, match=r"No such file or directory: '.*elsewhere'$"),
        files.new_folder(tmp_path / "a"),
    ):
        (tmp_path / "elsewhere").read_bytes()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No such file .* nothing of it is left.*none/a"):
        files.write_atomically(tmp_path / "none" / "a", b"")


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "is not valid JSON"), ('{"a": 1', "is not valid JSON"), ("[]", "object, got list")],
)
def test_json_that_is_damaged_is_an_error_that_names_the_file(text, message, tmp_path):
    file = tmp_path / "result.json"
    with pytest.raises(FileNotFoundError, match=r"result\.json is not there"):
        files.read_json(file)
    file.write_text(text)
    with pytest.raises(ValueError, match=rf"result\.json is damaged: .*{message}"):
        files.read_json(file)


@pytest.mark.parametrize("load", [dl.Ticket.load, dl.SolutionPath.load, dl.Plan.load])
def test_no_file_is_unpacked_before_its_size_is_known(load, tmp_path, monkeypatch):
    """Small files that would take gigabytes, or say that they do, are refused at once."""
    file = tmp_path / "file"
    name = {dl.Ticket.load: "ticket", dl.SolutionPath.load: "solution path"}.get(load, "plan")
    SAVERS[name](file)
    whole = file.read_bytes()
    if name != "plan":
        with np.load(file) as data:
            arrays = {key: data[key] for key in data.files}
        big = next(key for key in arrays if key.startswith("bits"))
        for change in ({big: np.zeros(2**24, np.uint8)}, {"header": np.array("[" * 10**5)}):
            np.savez_compressed(file, **arrays | change)
            with pytest.raises(ValueError, match=r"would take|nested too deeply"):
                load(f"{file}.npz")
        text = str(arrays["header"])
        for key in ("shapes", "groups"):
            tampered = re.sub(rf'("{key}": {{"kernel": )\[[0-9, ]+', r"\1[99999999, 9999999", text)
            assert tampered != text
            np.savez_compressed(file, **arrays | {"header": np.array(tampered)})
            with pytest.raises(ValueError, match="is no readable"):
                load(f"{file}.npz")
        np.savez(f"{file}.npz", header=np.array({}, dtype=object))
        with pytest.raises(ValueError, match="it is no archive of numbers") as caught:
            load(f"{file}.npz")
        assert "pickle" not in str(caught.value)
    else:
        file.write_text('{"format": ' + "[" * 10**5)
        with pytest.raises(ValueError, match="nested too deeply"):
            load(file)
    file.write_bytes(whole)
    load(file)


def test_deep_json_is_an_error_that_names_the_file(tmp_path):
    (tmp_path / "config.json").write_text('{"config": ' + "[" * 10**5)
    with pytest.raises(ValueError, match=r"config\.json is damaged: .*nested too deeply"):
        files.read_json(tmp_path / "config.json")
