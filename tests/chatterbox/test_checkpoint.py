"""Where weights come from: a directory, the cache, or once from the network; and what is said when they are nowhere."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from worker.models.chatterbox.checkpoint import CheckpointMissing, locate, missing
from worker.models.chatterbox.family import ENGLISH, FAMILIES, MULTILINGUAL

CONTENT = b"weights " * 1000


def tag(path: str) -> str:
    """Return what the cache tells files apart by."""
    return hashlib.sha1(path.rsplit("/", 1)[-1].encode()).hexdigest()


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as a download asks for. `server.asked` lists the files that were fetched."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        names = [*ENGLISH.weights, "README.md", "t3_of_another_model.safetensors"]
        if "/tree/" in self.path:
            tree = [{"type": "file", "path": name, "size": len(CONTENT), "oid": tag(name)} for name in names]
            content = json.dumps(tree).encode()
        elif self.path.startswith("/api/"):
            files = [{"rfilename": name} for name in names]
            content = json.dumps({"id": ENGLISH.repository, "sha": "c0ffee" * 6 + "c0ff", "siblings": files}).encode()
        else:
            content = CONTENT
            if body:
                self.server.asked.append(self.path.rsplit("/", 1)[1])  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{tag(self.path)}"')
        self.send_header("X-Repo-Commit", "c0ffee" * 6 + "c0ff")
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[http.server.ThreadingHTTPServer]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked = []  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def located(cache: Path, port: int, *, offline: bool) -> subprocess.CompletedProcess[str]:
    """Ask for the English weights as a worker without --checkpoint does; its output is the directory."""
    code = (
        "import sys; from worker.models.chatterbox.checkpoint import locate;"
        "from worker.models.chatterbox.family import ENGLISH; print(locate('', ENGLISH))"
    )
    environment = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HUB_CACHE": str(cache)}
    environment |= {"HF_HUB_OFFLINE": "1" if offline else "0", "NO_PROXY": "127.0.0.1"}
    return subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, env=environment)


def test_weights_are_fetched_once_with_progress(hub: http.server.ThreadingHTTPServer, tmp_path: Path) -> None:
    first = located(tmp_path, hub.server_port, offline=False)
    assert first.returncode == 0, first.stderr
    directory = Path(first.stdout.strip())
    assert not missing(directory, ENGLISH)
    assert (directory / ENGLISH.t3_file).read_bytes() == CONTENT
    assert "%|" in first.stderr, "no progress was shown"
    assert sorted(hub.asked) == sorted(ENGLISH.weights), "other files were fetched, too"  # type: ignore[attr-defined]
    again = located(tmp_path, hub.server_port, offline=True)
    assert again.stdout == first.stdout
    assert len(hub.asked) == len(ENGLISH.weights)  # type: ignore[attr-defined]


def test_offline_it_says_what_is_missing_and_where_it_looked(tmp_path: Path) -> None:
    done = located(tmp_path, 9, offline=True)
    assert done.returncode != 0
    for word in ("CheckpointMissing", *ENGLISH.weights, ENGLISH.repository, str(tmp_path), "--checkpoint"):
        assert word in done.stderr


def test_a_directory_that_lacks_files_is_refused_by_their_names(tmp_path: Path) -> None:
    for name in MULTILINGUAL.weights[1:]:
        (tmp_path / name).touch()
    with pytest.raises(CheckpointMissing, match=r"lacks ve\.pt of chatterbox-multilingual"):
        locate(str(tmp_path), MULTILINGUAL)


def test_each_family_names_its_files() -> None:
    for family in FAMILIES.values():
        assert {family.t3_file, family.s3gen_file, family.voice_encoder_file, "conds.pt"} <= set(family.weights)
