"""`tts-gateway doctor`: looks at the gateway, its fleet and the way to it from outside, and says what to do.

`facts` and `outside` look, `checks` judges without looking, `command` does one after the other.
"""
