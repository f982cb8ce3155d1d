"""Pages: one module each; routes only ask ``serve`` and fill a template."""
