"""What the facts of a gateway and of the way to it mean: pure functions from observed facts to findings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gateway.config import Config
from gateway.doctor.facts import Answer, Directory, Facts, Keys, Target, Worker
from gateway.doctor.outside import Outside, Round, Speech
from host.checks import check_skew
from host.findings import Finding, ok, problem, warning

# A listener with a player that plays at once hears a pause of this length.
LATE_SECONDS = 0.5
_SOON_DAYS = 14
_LOG = "journalctl -u tts-gateway -n 50   # or the log of the gateway, where it is not a unit"
# What the site of deploy/nginx sets; -T prints what nginx has read.
_NGINX = (
    "nginx -T 2>/dev/null | grep -nE 'proxy_buffering|proxy_http_version|proxy_ignore_headers|gzip'   "
    "# wanted: proxy_buffering off; proxy_http_version 1.1; gzip off; as in deploy/nginx/tts-gateway.conf"
)
_SPEAKING = ("ready", "probation")
_ON_THE_WAY = ("starting", "loading", "warming")
_BY_ORDER = {"draining": "undrain", "unloaded": "load"}


def check(config: Config, facts: Facts) -> Iterable[Finding]:
    """Judge the gateway, its workers and who watches them."""
    yield from check_gateway(config, facts.public, facts.internal)
    if facts.internal.status == 200:
        yield from check_workers(facts.workers)
        yield check_metrics(config, facts.metrics)
        yield check_prometheus(str(config.internal_listen), facts.prometheus, facts.targets)
    yield check_keys(facts.keys)
    yield check_data(facts.data)


def check_gateway(config: Config, public: Answer, internal: Answer) -> Iterable[Finding]:
    for name, listen, answer in (
        ("gateway", config.listen, public),
        ("gateway, internal", config.internal_listen, internal),
    ):
        if answer.status in (200, 503):
            yield ok(name, f"answers on {listen}")
        elif answer.status:
            yield problem(
                name,
                f"{listen} answers with {answer.status}, which no gateway does",
                "another program is where callers and workers look for the gateway",
                f"ss -ltnp 'sport = :{listen.port}'",
            )
        else:
            yield warning(
                name,
                f"nobody answers on {listen}: {answer.trouble}",
                "the gateway does not run, or listens elsewhere",
                "systemctl start tts.target   # or tts-gateway, where it is not a unit",
            )


def check_workers(workers: Sequence[Worker]) -> Iterable[Finding]:
    if not workers:
        yield problem(
            "workers",
            "none is linked",
            "nobody can speak; requests wait and are then refused with no_worker",
            "tts-worker doctor   # on the machine with the GPUs",
        )
    elif not any(worker.state in (*_SPEAKING, *_ON_THE_WAY) for worker in workers):
        yield problem(
            "workers", f"none of {len(workers)} is ready", "nobody can speak", "tts-gateway workers   # says why"
        )
    for worker in workers:
        yield check_worker(worker)
        if worker.answer.status != 200:
            yield warning(
                f"worker {worker.id}",
                f"{worker.address} cannot be read: {worker.answer.trouble or worker.answer.status}",
                "Prometheus cannot read its figures from here either, and no alert on its GPU can fire",
                f"curl -sS http://{worker.address}/metrics",
            )
        else:
            yield check_skew(f"worker {worker.id}", worker.answer.skew_seconds)


def check_worker(worker: Worker) -> Finding:
    subject = f"worker {worker.id}"
    seen = worker.state + (f": {worker.detail}" if worker.detail else "")
    if worker.state in _SPEAKING:
        return ok(subject, seen)
    if worker.state in _ON_THE_WAY:
        return warning(subject, seen, "it does not speak yet", "tts-gateway top   # shows it getting ready")
    if worker.state in _BY_ORDER:
        return warning(
            subject, seen, "somebody ordered that it gets no work",
            f"tts-gateway {_BY_ORDER[worker.state]} {worker.id}",
        )  # fmt: skip
    return problem(subject, seen, "it gets no work", "tts-worker doctor   # on its machine")


def check_metrics(config: Config, metrics: Answer) -> Finding:
    if metrics.status == 200 and b"tts_" in metrics.body:
        return ok("metrics", f"http://{config.internal_listen}/metrics can be read")
    seen = f"http://{config.internal_listen}/metrics: {metrics.trouble or metrics.status}"
    return problem("metrics", seen, "nobody is told when something fails", _LOG)


def check_prometheus(internal: str, url: str, targets: Sequence[Target] | None) -> Finding:
    if targets is None:
        return ok("prometheus", f"none answers at {url}; where it runs elsewhere, name it with --prometheus")
    ours = [target for target in targets if internal in target.url]
    if not ours:
        return warning(
            "prometheus",
            f"{url} scrapes nothing of {internal}",
            "no dashboard has a figure of this gateway, and no alert can fire",
            "cp -r deploy/prometheus/prometheus.yml deploy/prometheus/rules /etc/prometheus/ && "
            "systemctl restart prometheus",
        )
    if down := [target for target in targets if not target.is_up]:
        return warning(
            "prometheus",
            "; ".join(f"it cannot read {target.url}: {target.trouble}" for target in down),
            "alerts on what it cannot read cannot fire",
            f"curl -sS {down[0].url}   # from the host of Prometheus",
        )
    return ok("prometheus", f"{url} reads {len(targets)} targets, this gateway among them")


def check_keys(keys: Keys | None) -> Finding:
    if keys is None:
        return ok("keys", "none configured, so that callers on this machine are answered and nobody else")
    make = f"tts-gateway keys add --name NAME --keys-file {keys.path}"
    if keys.trouble:
        return problem("keys", keys.trouble, "the gateway does not start, and does not take a change of its keys", make)
    if not keys.count:
        return warning("keys", f"{keys.path} has none", "nobody is answered", make)
    return ok("keys", f"{keys.count} in {keys.path}")


def check_data(data: Directory | None) -> Finding:
    if data is None:
        return ok("data directory", "none, so that uploads of voices are refused; --data-directory names one")
    if not data.is_writable:
        return problem(
            "data directory", f"{data.path} cannot be written", "the gateway does not start",
            f"ls -ld {data.path}   # its owner is to be the user of the gateway",
        )  # fmt: skip
    return ok("data directory", data.path + ("" if data.exists else " is not there; the gateway makes it"))


def check_outside(outside: Outside) -> Iterable[Finding]:
    """Judge the way from outside."""
    url, answer = outside.url, outside.answer
    if answer.trouble:
        why = "callers outside cannot speak with the service either"
        yield problem("outside", f"{url}: {answer.trouble}", why, f"curl -v {url}/readyz")
        return
    if answer.status not in (200, 503):
        yield problem(
            "outside", f"{url}/readyz answers with {answer.status}", "the proxy does not bring callers to the gateway",
            "nginx -T 2>/dev/null | grep -n proxy_pass",
        )  # fmt: skip
        return
    if not outside.rounds:
        yield problem("outside", f"{url} answers with {answer.status}", "no worker is ready, or no gateway runs behind "
            "the proxy", "tts-gateway doctor")  # fmt: skip
        return
    yield from check_rounds(outside.rounds, outside.has_key)
    for path, size, status in outside.refused:
        yield check_body(path, size, status)
    yield check_open(outside.open_paths)
    yield check_websocket(outside.websocket)
    if outside.certificate_days is not None:
        yield check_certificate(outside.certificate_days)


def check_rounds(rounds: Sequence[Round], has_key: bool) -> Iterable[Finding]:
    through, direct = rounds[-1]
    if not through.is_whole:
        yield _unspoken(through, direct, has_key)
    elif direct is None or not direct.is_whole:
        first, last = through.arrivals[0][0], through.arrivals[-1][0]
        if needs_another(rounds):
            yield warning(
                "streaming",
                f"all sound came at once, {first:.1f} s after the request",
                "a proxy may keep it back until it has all, or there was only one piece; ask on the gateway's host",
                _NGINX,
            )
        else:
            yield ok("streaming", f"sound came from {first:.2f} s to {last:.2f} s after the request")
    else:
        late = min(lateness(*one) for one in _compared(rounds))
        if needs_another(rounds):
            yield problem(
                "streaming",
                f"the proxy keeps sound back: it comes up to {late:.1f} s later than from the gateway itself",
                "a listener hears pauses, or the beginning late",
                _NGINX,
            )
        else:
            yield ok("streaming", f"sound comes through at most {max(0.0, late):.2f} s later than from the gateway")


def needs_another(rounds: Sequence[Round]) -> bool:
    """Say whether the sound was kept back on the way in all rounds so far: one alone may be another caller's load."""
    compared = _compared(rounds)
    if compared:
        return all(lateness(through, direct) > LATE_SECONDS for through, direct in compared)
    through = rounds[-1][0]
    if not through.is_whole:
        return False
    first, last = through.arrivals[0][0], through.arrivals[-1][0]
    return first > LATE_SECONDS and last - first < first / 10


def lateness(through: Speech, direct: Speech) -> float:
    """Return by how many seconds at most the bytes of one speech came later than the same bytes of the other."""
    worst, had = float("-inf"), 0
    later = iter(through.arrivals)
    at, count = next(later)
    # Each piece as the gateway sent it: when was all of it there behind the proxy?
    for sent_at, had in direct.arrivals:
        while count < had:
            at, count = next(later, (at, had))
        worst = max(worst, at - sent_at)
    return worst


def _compared(rounds: Sequence[Round]) -> list[tuple[Speech, Speech]]:
    return [(one, other) for one, other in rounds if other is not None and one.is_whole and other.is_whole]


def _unspoken(through: Speech, direct: Speech | None, has_key: bool) -> Finding:
    if through.status in (401, 403) and through.error:
        return warning(
            "streaming",
            "not tried: the gateway wants a key" + (", and not this one" if has_key else ""),
            "whether a proxy keeps sound back is not known",
            "TTS_API_KEY=KEY tts-gateway doctor --public-url URL   # a key of the scope speak",
        )
    seen = through.trouble or f"status {through.status} {through.error}".strip()
    if direct is not None and direct.is_whole:
        why = "the gateway itself speaks it: it is the proxy that does not let it through"
        return problem("streaming", seen, why, "tail -n 50 /var/log/nginx/error.log")
    return problem("streaming", seen, "callers get no speech", "tts-gateway doctor && tts-gateway workers")


def check_body(path: str, size: int, status: int) -> Finding:
    shown = f"{size >> 20} MiB" if size >= 1 << 20 else f"{size >> 10} KiB"
    if status:
        return warning(
            "body size",
            f"{path}: a body of {shown} is refused with {status}",
            "the gateway would take it",
            f"nginx -T 2>/dev/null | grep -n client_max_body_size   # wanted for {path}: {-(-size >> 20) + 1}m",
        )
    return ok("body size", f"{path}: a body of {shown} is let through")


def check_open(paths: Sequence[str]) -> Finding:
    if paths:
        return problem(
            "operator's paths",
            f"reached from outside: {', '.join(paths)}",
            "strangers can read figures, steer workers or try to be one",
            "nginx -T 2>/dev/null | grep -n proxy_pass   # to --listen, never to --internal-listen",
        )
    return ok("operator's paths", "metrics, admin and internal cannot be reached from outside")


def check_websocket(status: int) -> Finding:
    if status == 101:
        return ok("websocket", "is let through")
    if status in (401, 403, 404, 429, 503):
        return ok("websocket", f"not tried to its end: the gateway answers with {status}")
    return warning(
        "websocket",
        f"a handshake is answered with {status or 'nothing'}",
        "text in pieces over a WebSocket does not come through",
        "nginx -T 2>/dev/null | grep -niE 'http_upgrade|Connection'   # as in deploy/nginx/tts-gateway.conf",
    )


def check_certificate(days: float) -> Finding:
    if days < _SOON_DAYS:
        return warning(
            "certificate", f"counts for {days:.0f} more days", "after that callers refuse it",
            "openssl x509 -enddate -noout -in /etc/tts/tls/fullchain.pem   # then renew it as it was got",
        )  # fmt: skip
    return ok("certificate", f"counts for {days:.0f} more days")
