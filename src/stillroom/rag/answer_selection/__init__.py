"""Answer sentence selection: an encoder reads question and passages, and scores each sentence."""
