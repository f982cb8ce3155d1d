"""Source faces and voices, forgery methods, benign edits, and consent."""
