"""Audio over RTP: Opus, a deadline jitter buffer, the paced outgoing track, and one peer per call."""
