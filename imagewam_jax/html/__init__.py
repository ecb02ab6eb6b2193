"""Self-contained HTML pages: `page` writes them, `page.html` is their template."""
