"""Images and audio, a file each: all that differs between them for a detector."""
