"""What a worker is told at start: flags, then environment, then defaults, read once into one frozen object."""

from __future__ import annotations

import argparse
import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from wire import logs
from worker.given import ConfigError, Given

CHATTERBOX_MODELS = ("chatterbox", "chatterbox-turbo", "chatterbox-multilingual")
MODELS = ("embedded", *CHATTERBOX_MODELS, "tone")
PRECISIONS = ("auto", "fp32", "tf32", "bf16")
STREAMS = ("segments", "chunk")
LOG_LEVELS = ("debug", "info", "warning", "error")

_DEFAULT_SLOTS = {"embedded": 2, "tone": 4} | dict.fromkeys(CHATTERBOX_MODELS, 2)
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_DEVICE = re.compile(r"[a-z]{1,16}(?::[0-9]{1,3})?")
_FIRST_PORT = 8100


class Address(NamedTuple):
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class ToneOptions:
    """How the tone model misbehaves. Chunk counts are within one attempt at a segment; None means never."""

    realtime_factor: float = 0.0
    overhead_seconds: float = 0.0
    load_seconds: float = 0.0
    prepare_seconds: float = 0.0
    fail_after_chunks: int | None = None
    exit_after_chunks: int | None = None
    lose_device_after_chunks: int | None = None
    stall_after_chunks: int | None = None
    hang_after_chunks: int | None = None
    fail_first_segments: int = 0
    reject: bool = False


@dataclass(frozen=True, slots=True)
class ChatterboxOptions:
    """Of the Chatterbox models. Without a `checkpoint` the published weights are taken, and fetched once."""

    checkpoint: str = ""
    precision: str = "auto"
    stream: str = "segments"
    watermark: bool = True
    voice_cache_bytes: int = 256 << 20
    cfm_steps: int | None = None  # the model's own
    reference_seconds: int = 10
    sound_batch: int | None = None  # as suits the device


@dataclass(frozen=True, slots=True)
class Config:
    """One worker. `port` 0 takes any free port; `announced_port` is the one that gateways dial, where that is another;
    `token` empty means that anybody on this host may ask; `slots` and `batch` None: as many as there is memory for."""

    id: str
    index: int = 0
    model: str = "embedded"
    host: str = "127.0.0.1"
    port: int = _FIRST_PORT
    announced_port: int | None = None
    gateways: tuple[Address, ...] = ()
    token: str = field(default="", repr=False)
    slots: int | None = 2
    batch: int | None = 2
    device: str = "cpu"
    split: tuple[str, ...] = ()  # two devices instead of the one: of the token stage and of the sound stage
    drain_timeout_seconds: float = 60.0
    max_memory_bytes: int = 0
    max_gpu_memory_bytes: int = 0
    unload_after_seconds: float = 0.0
    log_level: str = "info"
    log_format: str = "text"
    trace_endpoint: str = ""
    uvloop: bool = False
    tone: ToneOptions = ToneOptions()
    chatterbox: ChatterboxOptions = ChatterboxOptions()

    @property
    def devices(self) -> tuple[str, ...]:
        """Every device that the model runs on."""
        return self.split or (self.device,)

    @classmethod
    def from_environment(cls, arguments: Sequence[str], environment: Mapping[str, str]) -> Config:
        """Read the options; an environment variable that is empty counts as absent.

        Raises:
            ConfigError: a value that is impossible, alone or together with another.
            SystemExit: `--help`, or an option that does not exist (argparse has printed why).
        """
        given = Given(vars(_parser().parse_args(arguments)), environment, {one.flag: one.variable for one in OPTIONS})
        model = given.choice("model", "embedded", MODELS)
        index = given.whole("index", 0, 0, 999)
        device = given.text("device", "cpu")
        split = _split(given, model)
        slots, batch = _slots(given, model, split[0] if split else device)
        host = given.text("host", "127.0.0.1")
        token = _token(given)
        if not token and not _is_loopback(host):
            raise ConfigError(
                f"--host {host} is reachable from other hosts, so the fleet needs a token: set TTS_WORKER_TOKEN or "
                "--token-file, or listen on a loopback address."
            )
        id_ = given.text("id", f"worker-{index}")
        if not _NAME.fullmatch(id_):
            raise ConfigError(f"--id {id_!r} must be 1 to 64 of a-z 0-9 . _ - and begin with a letter or a digit.")
        return cls(
            id=id_,
            index=index,
            model=model,
            host=host,
            port=given.whole("port", _FIRST_PORT + index, 0, 65535),
            announced_port=given.whole_or_none("announce_port", 1, 65535),
            gateways=_addresses(given.text("gateways", "127.0.0.1:8081")),
            token=token,
            slots=slots,
            batch=batch,
            device=",".join(split) or device,
            split=split,
            drain_timeout_seconds=given.seconds("drain_timeout", 60.0),
            max_memory_bytes=given.whole("max_memory_mb", 0, 0, 1 << 24) << 20,
            max_gpu_memory_bytes=given.whole("max_gpu_memory_mb", 0, 0, 1 << 24) << 20,
            unload_after_seconds=given.seconds("unload_after", 0.0),
            log_level=given.choice("log_level", "info", LOG_LEVELS),
            log_format=given.choice("log_format", "text", logs.FORMATS),
            trace_endpoint=given.text_or_empty("trace_endpoint", "OTEL_EXPORTER_OTLP_ENDPOINT"),
            uvloop=given.switch("uvloop"),
            tone=_tone(given, model),
            chatterbox=_chatterbox(given, model),
        )


class _Option(NamedTuple):
    flag: str
    variable: str | None
    help: str
    is_switch: bool = False


# One line an option, in the order of --help.
OPTIONS = (
    _Option("--model", "TTS_WORKER_MODEL", f"the model to serve: {' or '.join(MODELS)} (default embedded)"),
    _Option("--index", "TTS_WORKER_INDEX", "number of this worker on this host, usually its GPU (default 0)"),
    _Option("--id", "TTS_WORKER_ID", "name in the fleet (default worker-<index>)"),
    _Option("--host", "TTS_WORKER_HOST", "address of the data listener (default 127.0.0.1)"),
    _Option("--port", "TTS_WORKER_PORT", "port of the data listener, 0 for any free one (default 8100 + index)"),
    _Option(
        "--announce-port",
        "TTS_WORKER_ANNOUNCE_PORT",
        "port that gateways dial, where a proxy or a container maps it (default: the listener's)",
    ),
    _Option(
        "--gateways", "TTS_GATEWAYS", "host:port[,host:port...] to register with, or none (default 127.0.0.1:8081)"
    ),
    _Option(
        "--token-file", "TTS_WORKER_TOKEN_FILE", "file that holds the fleet's token; TTS_WORKER_TOKEN holds it itself"
    ),
    _Option(
        "--slots",
        "TTS_WORKER_SLOTS",
        "segments taken at once, or auto, as many as the GPU has memory for (default 2, 4 for tone)",
    ),
    _Option("--batch", "TTS_WORKER_BATCH", "segments spoken in one step; the rest wait in line here (default: slots)"),
    _Option("--device", "TTS_WORKER_DEVICE", "device of the model (default cpu)"),
    _Option(
        "--split",
        "TTS_WORKER_SPLIT",
        "chatterbox: two devices instead of one, tokens on the first and sound on the second, like cuda:0,cuda:1",
    ),
    _Option(
        "--drain-timeout", "TTS_WORKER_DRAIN_TIMEOUT", "seconds that a stop waits for running segments (default 60)"
    ),
    _Option(
        "--max-memory-mb",
        "TTS_WORKER_MAX_MEMORY_MB",
        "drain and end, to be started anew, when the process holds more memory of the host (default 0: never)",
    ),
    _Option(
        "--max-gpu-memory-mb",
        "TTS_WORKER_MAX_GPU_MEMORY_MB",
        "the same for the memory of its GPU, as the driver counts it (default 0: never)",
    ),
    _Option(
        "--unload-after",
        "TTS_WORKER_UNLOAD_AFTER",
        "seconds without a segment after which the model's memory is given back; the next request loads it again "
        "(default 0: never)",
    ),
    _Option("--log-level", "TTS_WORKER_LOG_LEVEL", f"{', '.join(LOG_LEVELS)} (default info)"),
    _Option("--log-format", "TTS_WORKER_LOG_FORMAT", "text (key=value) or json, an object a line (default text)"),
    _Option(
        "--trace-endpoint",
        "TTS_WORKER_TRACE_ENDPOINT",
        "where spans go, by OTLP over HTTP, like http://127.0.0.1:4318; needs the extra `tracing` "
        "(default: OTEL_EXPORTER_OTLP_ENDPOINT, or nowhere)",
    ),
    _Option("--uvloop", "TTS_WORKER_UVLOOP", "run on uvloop, if it is installed", is_switch=True),
    _Option("--checkpoint", "TTS_WORKER_CHECKPOINT", "chatterbox: directory of the weights (default: fetched once)"),
    _Option(
        "--precision",
        "TTS_WORKER_PRECISION",
        f"chatterbox: {', '.join(PRECISIONS)} (default auto: bf16 on CUDA, fp32 elsewhere)",
    ),
    _Option(
        "--stream",
        "TTS_WORKER_STREAM",
        "chatterbox: give out whole segments, or each chunk of a second as it is made: segments or chunk "
        "(default segments)",
    ),
    _Option("--watermark", "TTS_WORKER_WATERMARK", "chatterbox: mark the sound, yes or no (default yes)"),
    _Option("--voice-cache-mb", "TTS_WORKER_VOICE_CACHE_MB", "chatterbox: memory for cloned voices (default 256)"),
    _Option(
        "--sound-batch",
        "TTS_WORKER_SOUND_BATCH",
        "chatterbox: segments whose sound is made together, of those in --batch (default 16 on a GPU, 1 on a CPU)",
    ),
    _Option(
        "--cfm-steps",
        "TTS_WORKER_CFM_STEPS",
        "chatterbox: steps from noise to sound; fewer are faster and sound different (default 10, Turbo 2)",
    ),
    _Option(
        "--reference-seconds",
        "TTS_WORKER_REFERENCE_SECONDS",
        "chatterbox: how much of a voice's recording the sound stage hears, 1 to 10; less is faster and sounds "
        "different (default 10)",
    ),
    _Option("--tone-realtime-factor", None, "tone: seconds per second of audio (default 0: at once)"),
    _Option("--tone-overhead-seconds", None, "tone: fixed work before the first chunk of a segment (default 0)"),
    _Option("--tone-load-seconds", None, "tone: time that loading takes (default 0)"),
    _Option("--tone-prepare-seconds", None, "tone: time that preparing an uploaded voice takes (default 0)"),
    _Option("--tone-fail-after-chunks", None, "tone: every segment fails after so many chunks"),
    _Option("--tone-exit-after-chunks", None, "tone: the process dies when a segment has so many chunks"),
    _Option("--tone-lose-device-after-chunks", None, "tone: its device is lost when a segment has so many chunks"),
    _Option("--tone-stall-after-chunks", None, "tone: every segment falls silent for ever after so many chunks"),
    _Option("--tone-hang-after-chunks", None, "tone: the engine thread hangs when a segment has so many chunks"),
    _Option("--tone-fail-first-segments", None, "tone: the first so many segments fail at once, the rest do not"),
    _Option("--tone-reject", None, "tone: every segment fails within 20 ms", is_switch=True),
)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tts-worker",
        description="Speaks segments of text on one device for the gateways that it registers with.",
        epilog="A flag wins over its environment variable. Is something wrong? tts-worker doctor says what mends it.",
        allow_abbrev=False,
    )
    for option in OPTIONS:
        text = option.help + (f" [{option.variable}]" if option.variable else "")
        if option.is_switch:
            parser.add_argument(option.flag, action="store_const", const="1", help=text)
        else:
            parser.add_argument(option.flag, metavar="VALUE", help=text)
    return parser


def _slots(given: Given, model: str, device: str) -> tuple[int | None, int | None]:
    """Return slots and batch; None where the model is to find out how many there is memory for."""
    if given.text("slots", "-").lower() == "auto":
        if model not in CHATTERBOX_MODELS or not device.startswith("cuda"):
            raise ConfigError(
                f"--slots auto counts the free memory of a GPU for a Chatterbox model, but --model is {model} and "
                f"--device is {device}: give a number."
            )
        if given.has("batch"):
            raise ConfigError("--batch cannot be given with --slots auto: both are what there is memory for.")
        return None, None
    slots = given.whole("slots", _DEFAULT_SLOTS[model], 1, 4096)
    batch = given.whole("batch", slots, 1, 4096)
    if batch > slots:
        raise ConfigError(f"--batch {batch} exceeds --slots {slots}: places that no lease could ever fill.")
    return slots, batch


def _tone(given: Given, model: str) -> ToneOptions:
    tone = ToneOptions(
        realtime_factor=given.seconds("tone_realtime_factor", 0.0),
        overhead_seconds=given.seconds("tone_overhead_seconds", 0.0),
        load_seconds=given.seconds("tone_load_seconds", 0.0),
        prepare_seconds=given.seconds("tone_prepare_seconds", 0.0),
        fail_after_chunks=given.whole_or_none("tone_fail_after_chunks"),
        exit_after_chunks=given.whole_or_none("tone_exit_after_chunks"),
        lose_device_after_chunks=given.whole_or_none("tone_lose_device_after_chunks"),
        stall_after_chunks=given.whole_or_none("tone_stall_after_chunks"),
        hang_after_chunks=given.whole_or_none("tone_hang_after_chunks"),
        fail_first_segments=given.whole("tone_fail_first_segments", 0, 0, 1_000_000),
        reject=given.switch("tone_reject"),
    )
    if model != "tone" and tone != ToneOptions():
        raise ConfigError(f"--tone-… options bend the tone model, but --model is {model}.")
    return tone


def _chatterbox(given: Given, model: str) -> ChatterboxOptions:
    options = ChatterboxOptions(
        checkpoint=given.text_or_none("checkpoint") or "",
        precision=given.choice("precision", "auto", PRECISIONS),
        stream=given.choice("stream", "segments", STREAMS),
        watermark=given.switch("watermark", "yes"),
        voice_cache_bytes=given.whole("voice_cache_mb", 256, 1, 1 << 20) << 20,
        cfm_steps=given.whole_or_none("cfm_steps", 1, 100),
        reference_seconds=given.whole("reference_seconds", 10, 1, 10),
        sound_batch=given.whole_or_none("sound_batch", 1, 256),
    )
    if model not in CHATTERBOX_MODELS and options != ChatterboxOptions():
        raise ConfigError(
            "--checkpoint, --precision, --stream, --watermark, --voice-cache-mb, --sound-batch, --cfm-steps and "
            f"--reference-seconds are for the Chatterbox models, but --model is {model}."
        )
    return options


def _split(given: Given, model: str) -> tuple[str, ...]:
    """Return the two devices of split mode, none without it; it comes before --device."""
    text = given.text_or_none("split")
    if text is None:
        return ()
    devices = tuple(device.strip() for device in text.split(","))
    if len(devices) != 2 or not all(_DEVICE.fullmatch(device) for device in devices):
        raise ConfigError(f"--split is {text!r}; it must be two devices, like cuda:0,cuda:1.")
    if model not in CHATTERBOX_MODELS:
        raise ConfigError(f"--split is for the Chatterbox models, which have two stages, but --model is {model}.")
    return devices


def _token(given: Given) -> str:
    """Return the fleet's token, or an empty string when there is none."""
    token = given.environment.get("TTS_WORKER_TOKEN", "").strip()
    path = given.text("token_file", "-")
    if path != "-":  # before the variable, as on the gateway
        try:
            token = Path(path).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--token-file {path} cannot be read: {error}.") from None
        if not token:
            raise ConfigError(f"--token-file {path} holds no token.")
    if not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError("TTS_WORKER_TOKEN must be printable ASCII without spaces: it travels in an HTTP header.")
    return token


def _addresses(text: str) -> tuple[Address, ...]:
    if text == "none":
        return ()
    return tuple(_address(item.strip()) for item in text.split(","))


def _address(text: str) -> Address:
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not re.fullmatch(r"[A-Za-z0-9._:%-]+", host) or not re.fullmatch(r"[0-9]{1,5}", port):
        raise ConfigError(f"--gateways has {text!r}; each entry must be host:port, like 127.0.0.1:8081.")
    if not 1 <= int(port) <= 65535:
        raise ConfigError(f"--gateways has {text!r}; a port lies between 1 and 65535.")
    return Address(host, int(port))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
