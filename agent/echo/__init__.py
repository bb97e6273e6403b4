"""The agent's own voice in what the microphone hears: taken out of the sound, or recognised by its words."""
