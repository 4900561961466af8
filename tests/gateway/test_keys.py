"""The keys file and the ring of keys: what counts, what is refused, and that a look-up tells nothing by its time."""

from __future__ import annotations

import hmac
import json
import multiprocessing
import os
import stat
from pathlib import Path

import pytest

from gateway.keys import (
    NO_LIMITS,
    Key,
    Keyring,
    KeysError,
    Limits,
    Scope,
    changing,
    digest_of,
    make_key,
    read_keys,
    write_keys,
)

SPEAK = [Scope.SPEAK]


def ring_of(count: int, compare=hmac.compare_digest) -> tuple[Keyring, list[str]]:
    made = [make_key(f"key {number}", SPEAK, NO_LIMITS, []) for number in range(count)]
    return Keyring([key for _, key in made], compare=compare), [secret for secret, _ in made]


def test_a_key_is_found_by_itself_and_by_nothing_else():
    ring, secrets = ring_of(5)
    for number, secret in enumerate(secrets):
        assert ring.find(secret).name == f"key {number}"
    for wrong in (
        "",
        "tts_",
        secrets[0][:-1],
        secrets[0] + "x",
        secrets[0].upper(),
        digest_of(secrets[0]),
        "\udcff",
        "ä",
    ):
        assert ring.find(wrong) is None


@pytest.mark.parametrize("which", ["first", "middle", "last", "none"])
def test_a_look_up_compares_every_key_whichever_matches(which: str):
    compared: list[tuple[bytes, bytes]] = []

    def counting(given: bytes, stored: bytes) -> bool:
        compared.append((given, stored))
        return hmac.compare_digest(given, stored)

    ring, secrets = ring_of(50, counting)
    presented = {"first": secrets[0], "middle": secrets[25], "last": secrets[-1], "none": "tts_nobody"}[which]
    assert (ring.find(presented) is None) == (which == "none")
    assert len(compared) == 50
    # What is compared are digests, all of one length: neither the length nor a prefix of the key can show.
    assert {(len(given), len(stored)) for given, stored in compared} == {(64, 64)}
    assert presented.encode() not in {given for given, _ in compared}


def test_the_comparison_is_the_one_that_takes_the_same_time_always():
    assert Keyring()._compare is hmac.compare_digest


def test_a_file_gives_back_what_was_written_and_holds_no_key(tmp_path: Path):
    file = tmp_path / "keys.json"
    secret, key = make_key("Ann's app".replace("'", ""), [Scope.SPEAK, Scope.VOICES], Limits(600, 3, 30.0), [])
    write_keys(file, [key])
    assert read_keys(file) == [key]
    assert secret not in file.read_text()
    assert secret.removeprefix("tts_") not in file.read_text()
    assert digest_of(secret) in file.read_text()
    assert digest_of(secret) not in repr(key)
    assert len(secret) >= 47


def test_a_new_file_is_readable_to_the_gateways_user_and_an_old_one_keeps_its_mode(tmp_path: Path):
    file = tmp_path / "keys.json"
    write_keys(file, [])
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    file.chmod(0o600)
    write_keys(file, [])
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["keys.json"]


def test_a_link_to_the_file_stays_one(tmp_path: Path):
    (tmp_path / "real").mkdir()
    file, link = tmp_path / "real" / "keys.json", tmp_path / "keys.json"
    write_keys(file, [])
    link.symlink_to(file)
    write_keys(link, [make_key("a", SPEAK, NO_LIMITS, [])[1]])
    assert link.is_symlink()
    assert [key.name for key in read_keys(file)] == ["a"]


def test_a_file_that_cannot_be_written_is_left_as_it_was(tmp_path: Path):
    with pytest.raises(KeysError, match="cannot be written: No such file"):
        write_keys(tmp_path / "away" / "keys.json", [])
    with pytest.raises(KeysError, match="cannot be opened"), changing(tmp_path / "away" / "keys.json"):
        pass


def _add(file: Path, number: int) -> None:
    with changing(file):
        keys = read_keys(file)
        write_keys(file, [*keys, make_key(f"key {number}", SPEAK, NO_LIMITS, keys)[1]])


def test_two_who_add_at_once_lose_no_key(tmp_path: Path):
    file = tmp_path / "keys.json"
    write_keys(file, [])
    context = multiprocessing.get_context("spawn")
    with context.Pool(4) as pool:
        pool.starmap(_add, [(file, number) for number in range(24)])
    assert sorted(key.name for key in read_keys(file)) == sorted(f"key {number}" for number in range(24))


GOOD = {"id": "a1", "name": "ann", "sha256": "0" * 64, "scopes": ["speak"]}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "is not one"),
        ("[]", "is not one"),
        ("{}", "is not one: 'keys'"),
        ('{"keys": 5}', "is not one"),
        ("[" * 100_000, "is not one"),
        (b"\xff\xfe", "is not one"),
        ({"keys": [5]}, "entry 0 is not an object"),
        ({"keys": [GOOD, {**GOOD, "id": "b", "name": "b"}]}, "two keys of the same sha256"),
        ({"keys": [GOOD, {**GOOD, "sha256": "1" * 64, "name": "b"}]}, "two keys of the same id"),
        ({"keys": [GOOD, {**GOOD, "sha256": "1" * 64, "id": "b"}]}, "two keys of the same name"),
        ({"keys": [{**GOOD, "scopes": []}]}, "no scopes"),
        ({"keys": [{**GOOD, "scopes": ["root"]}]}, "root"),
        ({"keys": [{**GOOD, "sha256": "0" * 63}]}, "bad sha256"),
        ({"keys": [{**GOOD, "sha256": "G" * 64}]}, "bad sha256"),
        ({"keys": [{**GOOD, "id": "A 1"}]}, "bad id"),
        ({"keys": [{**GOOD, "name": "a\nb"}]}, "bad name"),
        ({"keys": [{**GOOD, "scope": ["speak"]}]}, "unknown field 'scope'"),
        ({"keys": [{**GOOD, "limits": {"per_minute": 5}}]}, "unknown limit 'per_minute'"),
        ({"keys": [{**GOOD, "limits": {"concurrent": -1}}]}, "limit concurrent"),
        ({"keys": [{**GOOD, "limits": {"concurrent": "5"}}]}, "limit concurrent"),
        ({"keys": [{**GOOD, "limits": {"concurrent": True}}]}, "limit concurrent"),
    ],
    ids=lambda item: str(item)[:40],
)
def test_a_file_with_one_bad_entry_is_refused_whole(tmp_path: Path, content: object, reason: str):
    file = tmp_path / "keys.json"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(KeysError, match=reason):
        read_keys(file)


def test_a_file_that_is_not_there_says_so(tmp_path: Path):
    with pytest.raises(KeysError, match="cannot be read: No such file"):
        read_keys(tmp_path / "keys.json")


@pytest.mark.parametrize("name", ["", " a", "a\n", "a\r\nSet-Cookie: x", "x" * 65, "\x1b[31m", "[red]"])
def test_a_name_that_could_hurt_a_log_is_refused(name: str):
    with pytest.raises(KeysError, match="A name has"):
        make_key(name, SPEAK, NO_LIMITS, [])


def test_a_name_is_given_once():
    _, key = make_key("ann", SPEAK, NO_LIMITS, [])
    with pytest.raises(KeysError, match="named 'ann' already"):
        make_key("ann", SPEAK, NO_LIMITS, [key])
    with pytest.raises(KeysError, match="at least one scope"):
        make_key("bob", [], NO_LIMITS, [key])


def test_no_two_keys_are_alike():
    made = [make_key("a", SPEAK, NO_LIMITS, []) for _ in range(500)]
    assert len({secret for secret, _ in made}) == len({key.sha256 for _, key in made}) == 500
    assert all(isinstance(key, Key) and key.limits == NO_LIMITS for _, key in made)
