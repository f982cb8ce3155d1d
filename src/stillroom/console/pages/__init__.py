"""Pages of the console: routes that query ``serve`` and render a template."""
