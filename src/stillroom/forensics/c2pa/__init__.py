"""C2PA content credentials: certificates, signing, and validation."""
