"""schemathesis reads /openapi.json and tries what it allows and what it forbids: no 5xx, no answer it does not name."""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path

import pytest

from gateway import keys_command
from tests.e2e.cluster import BIN, Cluster

pytestmark = pytest.mark.e2e

# 504 is the honest answer to a timeout_seconds of a tenth; 503 to a gateway that is full. No other 5xx is.
CONFIG = """
[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", 503, 504]
"""
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


@pytest.mark.timeout(600)  # a minute and a half alone on two cores
async def test_nothing_that_the_document_allows_or_forbids_is_a_server_error(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "keys.json"
    scopes = ("--scope", "speak", "--scope", "voices")
    assert keys_command.run(["add", "--name", "fuzz", *scopes, "--keys-file", str(file)]) == 0
    key = capsys.readouterr().out.strip()
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    await cluster.start_gateway("--keys-file", str(file), "--data-directory", str(tmp_path / "data"))
    await cluster.start_workers(1)
    ran = await asyncio.create_subprocess_exec(
        *(str(BIN / "schemathesis"), "run", f"{cluster.url}/openapi.json", "--continue-on-failure"),
        *("--exclude-path", "/v1/live"),  # a stream without end
        *("--checks", CHECKS, "--phases", "examples,coverage,fuzzing", "--max-examples", "40", "--seed", "1"),
        *("--header", f"Authorization: Bearer {key}", "--no-color", "--suppress-health-check", "all"),
        cwd=tmp_path,
        env=os.environ | {"NO_PROXY": "*"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await ran.communicate()
    told = out.decode()
    assert ran.returncode == 0, told[-6000:]
    assert int(re.search(r"(\d+) generated", told)[1]) > 200
    assert cluster.gateway is not None
    assert "Traceback" not in cluster.gateway.log_text()
