"""The three published models: files, languages, what a request may bend, and upstream's defaults. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from wire.link import ModelInfo

SAMPLE_RATE = 24_000
DEFAULT_VOICE = "default"
MAX_SEGMENT_CHARACTERS = 280
SPEECH_IDS = 6561  # 3**8 codes of the speech tokenizer; ids from here on are no sound
START_SPEECH = 6561
STOP_SPEECH = 6562
SILENCE = 4299  # upstream's S3GEN_SIL
TOKENS_A_SECOND = 25
SAMPLES_A_TOKEN = 960
FRAMES_A_TOKEN = 2
SAMPLES_A_FRAME = 480
# 2048 positions are learned for text. Beyond them upstream reads past the table, which on CUDA ends the process.
MAX_TEXT_TOKENS = 2040
# tts.py:249 of chatterbox-tts 0.1.7; 40 seconds.
MAX_SPEECH_TOKENS = 1000

_EUROPEAN = ("LATIN",)


@dataclass(frozen=True, slots=True)
class Family:
    """One published model. `weights` must be there; `extras` are fetched where the repository has them."""

    id: str
    repository: str
    weights: tuple[str, ...]
    extras: tuple[str, ...]
    languages: tuple[str, ...]
    scripts: tuple[str, ...]
    defaults: Mapping[str, float]
    text_ids: int
    is_turbo: bool = False
    is_multilingual: bool = False
    shortest_clip_seconds: float = 1.0
    prompt_seconds: int = 6  # of a clip, that the token stage hears; the sound stage hears 10
    flow_steps: int = 10

    @property
    def parameters(self) -> tuple[str, ...]:
        """The parameters of a segment that the model heeds."""
        return tuple(self.defaults)

    def info(self, *, watermark: bool) -> ModelInfo:
        """What gateways are told of the model."""
        return ModelInfo(
            id=self.id,
            sample_rate=SAMPLE_RATE,
            voices=(DEFAULT_VOICE,),
            languages=self.languages,
            scripts=self.scripts,
            parameters=self.parameters,
            max_segment_characters=MAX_SEGMENT_CHARACTERS,
            cloning=True,
            min_clip_seconds=self.shortest_clip_seconds,
            watermark="perth" if watermark else "",
        )

    @property
    def t3_file(self) -> str:
        return next(name for name in self.weights if name.startswith("t3_"))

    @property
    def s3gen_file(self) -> str:
        return next(name for name in self.weights if name.startswith("s3gen"))

    @property
    def voice_encoder_file(self) -> str:
        return next(name for name in self.weights if name.startswith("ve."))


ENGLISH = Family(
    id="chatterbox",
    repository="ResembleAI/chatterbox",
    weights=("ve.safetensors", "t3_cfg.safetensors", "s3gen.safetensors", "tokenizer.json", "conds.pt"),
    extras=(),
    languages=("en",),
    scripts=_EUROPEAN,
    defaults={
        "temperature": 0.8,
        "exaggeration": 0.5,
        "cfg_weight": 0.5,
        "top_p": 1.0,
        "min_p": 0.05,
        "repetition_penalty": 1.2,
    },
    text_ids=704,
)

TURBO = Family(
    id="chatterbox-turbo",
    repository="ResembleAI/chatterbox-turbo",
    weights=(
        "ve.safetensors",
        "t3_turbo_v1.safetensors",
        "s3gen_meanflow.safetensors",
        "tokenizer_config.json",
        "conds.pt",
    ),
    extras=("tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json"),
    languages=("en",),
    scripts=_EUROPEAN,
    defaults={"temperature": 0.8, "top_p": 0.95, "repetition_penalty": 1.2},
    text_ids=50_276,
    is_turbo=True,
    # tts_turbo.py:221 asserts more than five seconds.
    shortest_clip_seconds=5.0,
    prompt_seconds=15,
    flow_steps=2,
)

MULTILINGUAL = Family(
    id="chatterbox-multilingual",
    repository="ResembleAI/chatterbox",
    weights=("ve.pt", "t3_mtl23ls_v2.safetensors", "s3gen.pt", "grapheme_mtl_merged_expanded_v1.json", "conds.pt"),
    extras=("Cangjie5_TC.json",),
    languages=(
        "en", "ar", "da", "de", "el", "es", "fi", "fr", "he", "hi", "it", "ja",
        "ko", "ms", "nl", "no", "pl", "pt", "ru", "sv", "sw", "tr", "zh",
    ),
    scripts=(),
    defaults=dict(ENGLISH.defaults) | {"repetition_penalty": 2.0},
    text_ids=2454,
    is_multilingual=True,
)  # fmt: skip

FAMILIES = {family.id: family for family in (ENGLISH, TURBO, MULTILINGUAL)}
