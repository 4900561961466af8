"""A real nginx as a plain user on free ports, with the site that a test gives it."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

from tests.e2e.cluster import until


async def certificate(directory: Path) -> Path:
    """Make a key and a certificate for 127.0.0.1 in the directory, named as the site of deploy/nginx names them."""
    made = directory / "fullchain.pem"
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 60 -subj /CN=tts.example.com "
        f"-addext subjectAltName=IP:127.0.0.1 -keyout {directory / 'privkey.pem'} -out {made}"
    )
    await asyncio.to_thread(subprocess.run, command.split(), check=True, capture_output=True)
    return made


@contextlib.asynccontextmanager
async def nginx(directory: Path, http: str, port: int) -> AsyncIterator[None]:
    """Run nginx with these lines in its http context for the length of the block; it must listen on the port."""
    temporary = " ".join(
        f"{kind}_temp_path {directory}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (directory / "nginx.conf").write_text(
        f"daemon off; pid {directory}/pid; error_log stderr; worker_processes 1; events {{}}"
        f"http {{ access_log off; {temporary}\n{http}\n}}"
    )
    with (directory / "nginx.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec("nginx", "-c", str(directory / "nginx.conf"), stderr=log)
    try:

        async def listens() -> bool:
            assert process.returncode is None, (directory / "nginx.log").read_text()
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionError:
                return False
            writer.close()
            return True

        await until(listens, "nginx to listen")
        yield
    finally:
        process.terminate()
        await process.wait()
