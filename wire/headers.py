"""Names of the HTTP headers that one side sets and the other, or a client, reads."""

REQUEST_ID = "X-Request-Id"
SEED = "X-TTS-Seed"
MODEL = "X-TTS-Model"
VOICE = "X-TTS-Voice"
# Of the worker's process that a data call is meant for: another one on its port must not answer.
EPOCH = "X-TTS-Epoch"
IGNORED_FIELDS = "X-TTS-Ignored-Fields"
WATERMARK = "X-TTS-Watermark"
# nginx would hold a stream back to fill its buffers; this tells it not to.
ACCEL_BUFFERING = "X-Accel-Buffering"

SEGMENTS_PATH = "/v1/segments"
SEGMENT_CONTENT_TYPE = "application/vnd.chatterbox-gateway.frames"

# On the gateway's internal listener, for workers: a clip, and what another worker has computed of it.
CLIP_PATH = "/internal/clips/{sha256}"
PREPARED_PATH = "/internal/prepared/{format}/{sha256}"
