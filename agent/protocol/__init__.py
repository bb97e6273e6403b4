"""The OpenAI Realtime protocol: what may be said, without any socket."""
