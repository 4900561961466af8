"""`tts-worker doctor`: looks at the GPU, the model and the gateways of a worker, and says what to do.

`facts`, `device` and `links` look, `checks` judges without looking, `command` does one after the other.
"""
