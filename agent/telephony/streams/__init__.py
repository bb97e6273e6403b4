"""Media streams of carriers over WebSocket, a provider each: frames in, happenings out, and what to send."""
